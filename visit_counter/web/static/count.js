// Counts a view of this page, and shows counts in the elements that ask for one. Its options: docs/web-page.md
(() => {
  // A second script, by mistake, counts nothing.
  if (window.visits) return;
  const { src, dataset: options } = document.currentScript;
  const host = (url) => url.hostname.replace(/^www\./, "");
  const isSkipped =
    options.everywhere == null &&
    (self !== top || navigator.webdriver || /^(127\..*|\[::1\]|(.*\.)?localhost|)$/.test(location.hostname));
  const canonical = () => document.querySelector("link[rel=canonical]")?.href;
  let referrer = document.referrer;
  let last; // the page of the last view
  let old; // its canonical link, which may still be there when the address has changed
  let waits;

  // A visitor switches counting off and on for himself, with #visits-off and #visits-on behind an address.
  const isOff = () => {
    try {
      const choice = location.hash.match(/^#visits-(off|on)$/);
      if (choice) localStorage.visits = choice[1];
      return localStorage.visits === "off";
    } catch {} // the browser keeps nothing for this page
  };

  const current = () => {
    if (options.page) return options.page;
    const link = canonical();
    let url = new URL(location);
    if (link && link !== old && host(new URL(link)) === host(url)) url = new URL(link);
    let page = host(url) + url.pathname;
    try {
      page = decodeURIComponent(page);
    } catch {} // a % that encodes nothing stays
    const kept = [...new URLSearchParams(location.search)].filter(([name]) => options.query?.split(",").includes(name));
    if (kept.length) page += `?${new URLSearchParams(kept)}`;
    // A page has 255 bytes at most.
    return page.slice(0, new TextEncoder().encodeInto(page, new Uint8Array(255)).read);
  };

  const call = async (path, request) => {
    try {
      return (await (await fetch(new URL(`visits${path}`, src), request)).json()).visits;
    } catch {} // the service is away: what the page shows stays as it is
  };

  const read = (pages) => call(`?${new URLSearchParams(pages.map((page) => ["page", page]))}`);

  const count = async (page = current()) => {
    if (isSkipped || isOff()) return (await read([page]))?.[page];
    const isPrivate = navigator.globalPrivacyControl || navigator.doNotTrack > 0;
    const details = JSON.stringify({ referrer, query: location.search, width: innerWidth });
    return call(`/${encodeURIComponent(page).replaceAll("%2F", "/")}`, { method: "POST", keepalive: true, body: isPrivate ? "" : details });
  };

  const view = async () => {
    const page = (last = current());
    const counts = options.manual == null ? { [page]: await count() } : {};
    referrer = "";
    const elements = [...document.querySelectorAll("[data-visits]")];
    const pageOf = (element) => element.dataset.visits || page;
    const others = [...new Set(elements.map(pageOf))].filter((name) => !(name in counts));
    while (others.length) Object.assign(counts, await read(others.splice(0, 100)));
    for (const element of elements) element.textContent = counts[pageOf(element)] ?? element.textContent;
  };

  // Not while the page is prepared, or behind another one, but once it is seen.
  const whenSeen = () => {
    if (waits) return;
    waits = document.hidden && (document.prerendering ? "prerenderingchange" : "visibilitychange");
    if (!waits) return view();
    document.addEventListener(waits, () => whenSeen((waits = 0)), { once: true });
  };

  const navigated = ({ navigationType }) => {
    const before = last;
    old = canonical();
    last = current();
    if (last !== before && (navigationType !== "replace" || options.replace != null)) whenSeen();
  };

  window.visits = { count };
  addEventListener("hashchange", isOff);
  addEventListener("pageshow", (event) => event.persisted && whenSeen());
  if (window.navigation) {
    navigation.addEventListener("currententrychange", navigated);
  } else {
    addEventListener("popstate", navigated);
    const { pushState } = history;
    history.pushState = (...state) => {
      pushState.apply(history, state);
      navigated({});
    };
  }
  // Where the page's policy forbids the call, an image may be allowed.
  document.addEventListener("securitypolicyviolation", ({ blockedURI, disposition }) => {
    if (disposition === "enforce" && blockedURI.startsWith(new URL("visits/", src)))
      new Image().src = `${blockedURI.replace("visits/", "pixel/")}.gif`;
  });
  whenSeen();
})();
