"use strict";
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
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code); // no right to the clipboard: selected, ready for the keyboard
    }
  });
  box.append(button);
}
// Pictures: a click enlarges, the arrow keys go through all of them in place, a click or Esc closes.
const pictures = [...document.querySelectorAll(".zoom img")];
const dialog = document.querySelector("dialog");
let current = 0;
function show(index) {
  current = (index + pictures.length) % pictures.length;
  dialog.querySelector("img").src = pictures[current].src;
  dialog.querySelector("p").textContent = pictures[current].alt;
}
pictures.forEach((picture, index) => picture.parentElement.addEventListener("click", () => {
  show(index);
  dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (move) {
    event.preventDefault();
    show(current + move);
  }
});
