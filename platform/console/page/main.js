// Brings the parts of the page together: what the frontend tells goes to each of them.

import { Charts } from "./charts.js";
import { Connection, storedKey } from "./connection.js";
import { Decisions } from "./decisions.js";
import { Details } from "./details.js";
import { byId, setAttribute, setText } from "./dom.js";
import { WorkerMap } from "./map.js";
import { PlannerPanel } from "./planner.js";
import { Pools } from "./pools.js";
import { signIn, signOutButton } from "./sign_in.js";
import { FleetState } from "./state.js";
import { themeSwitch } from "./theme.js";
import { Tiles } from "./tiles.js";

const state = new FleetState();
const tiles = new Tiles(byId("tiles"));
const charts = new Charts(byId("charts"));
const pools = new Pools();
const details = new Details();
const map = new WorkerMap((id) => details.choose(state, id));
const decisions = new Decisions();
const planner = new PlannerPanel();

themeSwitch(byId("theme"), () => {
  charts.redraw();
  planner.redraw();
});
signOutButton().hidden = storedKey() === null;

new Connection({
  pathOf: () => `console/data?since=${state.cursor}`,
  take: (told) => {
    show(state.apply(told));
    return 1000 * told.again_s;
  },
  tell: showConnection,
  signIn,
}).run();

function show(news) {
  setText(byId("model"), state.model);
  tiles.update(state);
  charts.update(state);
  map.update(state, news);
  details.update(state);
  pools.update(state, state.wanted);
  decisions.update(state);
  planner.update(state);
  document.body.dataset.cursor = state.cursor;
}

function showConnection(how, error) {
  const pill = byId("connection");
  const texts = { live: "live", lost: "connection lost, trying again", "signed out": "signed out" };
  setText(pill, texts[how]);
  setAttribute(pill, "data-state", how);
  pill.title = error ? String(error.message) : "";
  document.body.classList.toggle("stale", how !== "live");
}
