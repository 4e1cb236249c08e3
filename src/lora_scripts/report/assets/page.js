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
