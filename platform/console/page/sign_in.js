// Asks for an API key, and keeps it in this tab's session: never in the URL.

import { forgetKey, storeKey } from "./connection.js";
import { byId } from "./dom.js";

export function signIn(wasRefused) {
  const dialog = byId("sign-in");
  const field = byId("key");
  forgetKey();
  byId("sign-out").hidden = true;
  byId("sign-in-wrong").textContent = wasRefused ? "This key is not known here." : "";
  field.value = "";
  if (!dialog.open) dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    byId("sign-in-form").addEventListener(
      "submit",
      () => {
        storeKey(field.value.trim());
        field.value = "";
        byId("sign-out").hidden = false;
        resolve();
      },
      { once: true },
    );
  });
}

export function signOutButton() {
  const button = byId("sign-out");
  button.addEventListener("click", () => {
    forgetKey();
    location.reload();
  });
  return button;
}
