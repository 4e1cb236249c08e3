// Chinese beside English: the browser's language decides at first, or the run's config, then the button.
const zh = JSON.parse(document.getElementById("zh").textContent);
const root = document.documentElement;
const english = new Map(); // text node, or element and attribute -> its own words
const silent = "script, style, code, pre, .copy, .language, [translate=no]";
const plain = (text) => text.trim().replace(/\s+/g, " ");
function said(words) {
  return (root.lang === "zh" && zh[words]) || words;
}
function speak(language) {
  root.lang = language;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest(silent) || !plain(node.data)) continue;
    const own = english.get(node) ?? node.data;
    english.set(node, own);
    const words = said(plain(own));
    node.data = words === plain(own) ? own : own.replace(/\S[\s\S]*\S|\S/, () => words);
  }
  for (const name of ["aria-label", "placeholder", "title", "alt"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      if (element.closest(silent)) continue;
      if (!english.has(element)) english.set(element, {});
      const own = english.get(element);
      own[name] ??= element.getAttribute(name);
      element.setAttribute(name, said(plain(own[name])));
    }
  }
  for (const button of document.querySelectorAll(".copy")) button.textContent = said("Copy");
  switcher.textContent = language === "zh" ? "English" : "中文";
}
const switcher = document.createElement("button");
switcher.type = "button";
switcher.className = "language";
switcher.lang = "";
switcher.addEventListener("click", () => speak(root.lang === "zh" ? "en" : "zh"));
document.querySelector("main").prepend(switcher);
const wanted = root.dataset.language;
speak(wanted === "auto" ? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en") : wanted);
