// Light, dark, or as the system has it: chosen on any page, kept for all of them.
// Loaded in <head> without defer, so that nobody sees the other colours first. Django's admin keeps its choice under the
// same key and attribute (admin/js/theme.js), and its pages follow.
"use strict";

(() => {
  const KEY = "theme";
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const WORDS = { auto: "as the system", light: "light", dark: "dark" };

  const chosen = () => {
    try {
      return localStorage.getItem(KEY) ?? "auto";
    } catch {
      return "auto"; // storage may be forbidden: then the choice lasts as long as the page
    }
  };

  const apply = (theme) => {
    document.documentElement.dataset.theme = theme in NEXT ? theme : "auto";
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.setAttribute("aria-label", `Colours: ${WORDS[document.documentElement.dataset.theme]}. Change`);
      button.title = `Colours: ${WORDS[document.documentElement.dataset.theme]}`;
    }
  };

  apply(chosen());
  addEventListener("storage", ({ key }) => key === KEY && apply(chosen()));
  addEventListener("DOMContentLoaded", () => apply(document.documentElement.dataset.theme));
  addEventListener("click", ({ target }) => {
    if (!target.closest?.("[data-theme-toggle]")) return;
    const theme = NEXT[document.documentElement.dataset.theme];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // see above
    }
    apply(theme);
  });
})();
