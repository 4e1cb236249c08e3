// Copy buttons: the text is there without them.
for (const box of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = said("Copied");
      setTimeout(() => { button.textContent = said("Copy"); }, 1500);
    } catch {
      getSelection().selectAllChildren(code); // no right to the clipboard: selected, ready for the keyboard
    }
  });
  box.append(button);
}
