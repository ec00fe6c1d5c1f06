// Dark or light: as the system has it, unless somebody has chosen.

const KEY = "stafette-theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const NAMES = {
  auto: ["Auto", "Theme: as the system"],
  light: ["Light", "Theme: light"],
  dark: ["Dark", "Theme: dark"],
};

export function themeSwitch(button, onChange) {
  let chosen = localStorage.getItem(KEY) ?? "auto";
  if (!(chosen in NEXT)) chosen = "auto";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const auto = system.matches ? "dark" : "light";
    document.documentElement.dataset.theme = chosen === "auto" ? auto : chosen;
    const [text, label] = NAMES[chosen];
    button.textContent = text;
    button.setAttribute("aria-label", label);
    onChange();
  };
  button.addEventListener("click", () => {
    chosen = NEXT[chosen];
    localStorage.setItem(KEY, chosen);
    show();
  });
  system.addEventListener("change", show);
  show();
}
