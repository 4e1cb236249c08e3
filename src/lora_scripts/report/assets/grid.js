// A click enlarges a picture beside its parameters; the arrow keys go through all of them, a click or Esc closes.
const cells = [...document.querySelectorAll(".cells .zoom")];
const dialog = document.querySelector("dialog");
let current = 0;
function show(index) {
  current = (index + cells.length) % cells.length;
  const { file, title, text, values } = cells[current].dataset;
  const image = dialog.querySelector("img");
  image.src = cells[current].querySelector("img").src;
  image.alt = title;
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("pre").textContent = text;
  dialog.querySelector("a").href = file;
  const list = dialog.querySelector("dl");
  list.replaceChildren(...values.split("\n").filter(Boolean).map((row) => {
    const pair = document.createElement("div");
    row.split("\t").forEach((part, i) => {
      const piece = document.createElement(i ? "dd" : "dt");
      piece.textContent = i ? part : said(part);
      pair.append(piece);
    });
    return pair;
  }));
}
cells.forEach((cell, index) => cell.addEventListener("click", () => {
  show(index);
  dialog.showModal();
  dialog.scrollTop = 0;
}));
dialog.addEventListener("click", (event) => {
  if (!event.target.closest(".about")) dialog.close();
});
dialog.addEventListener("close", () => cells[current].focus());
dialog.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (move) {
    event.preventDefault();
    show(current + move);
  }
});
