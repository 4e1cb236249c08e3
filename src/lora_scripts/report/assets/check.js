// Filters: severities and kinds that are pressed, and a part of a file name. Without a script everything is shown.
const filters = document.querySelector(".filters");
if (filters) {
  const chips = [...filters.querySelectorAll(".chip")];
  const search = filters.querySelector("input");
  const none = filters.querySelector(".none");
  const pressed = (key) => chips.filter((c) => c.dataset[key] && c.ariaPressed === "true").map((c) => c.dataset[key]);
  const apply = () => {
    const severities = pressed("severity");
    const kinds = pressed("kind");
    const name = search.value.trim().toLowerCase();
    let any = false;
    for (const group of document.querySelectorAll(".group")) {
      const wanted = !kinds.length || kinds.includes(group.dataset.kind);
      let some = false;
      for (const finding of group.querySelectorAll(".finding")) {
        const fits = wanted && (!severities.length || severities.includes(finding.dataset.severity))
          && finding.dataset.names.includes(name);
        finding.hidden = !fits;
        some ||= fits;
      }
      for (const more of group.querySelectorAll(":scope > details")) {
        more.hidden = ![...more.querySelectorAll(".finding")].some((finding) => !finding.hidden);
        if (name) more.open = true;
      }
      group.hidden = !some;
      any ||= some;
    }
    none.hidden = any;
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.ariaPressed = chip.ariaPressed === "true" ? "false" : "true";
      apply();
    });
  }
  search.addEventListener("input", apply);
  none.querySelector("button").addEventListener("click", () => {
    for (const chip of chips) chip.ariaPressed = "false";
    search.value = "";
    apply();
  });
  filters.hidden = false;
}
