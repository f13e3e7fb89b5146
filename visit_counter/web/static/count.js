// Counts a view of this page, and shows counts in the elements that ask for one. Its options: docs/web-page.md
(() => {
  // A second script, by mistake, counts nothing.
  if (window.visits) return;
  const { src, dataset: options } = document.currentScript;
  const host = (url) => url.hostname.replace(/^www\./, "");
  const isSkipped =
    !("everywhere" in options) &&
    (self !== top || navigator.webdriver || /^127\.|^\[::1]|(^|\.)localhost$|^$/.test(location.hostname));
  const canonical = () => document.querySelector("[rel=canonical]")?.href;
  let { referrer } = document;
  let last; // the page of the last view
  let old; // its canonical link, which may still be there when the address has changed

  // A visitor switches counting off and on for himself, with #visits-off and #visits-on behind an address.
  const isOff = () => {
    try {
      if (/^#visits-o(n|ff)$/.test(location.hash)) localStorage.visits = location.hash;
      return localStorage.visits === "#visits-off";
    } catch {} // the browser keeps nothing for this page
  };

  const current = () => {
    if (options.page) return options.page;
    const link = canonical();
    const url = link && link !== old && host(new URL(link)) === host(location) ? new URL(link) : location;
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
    const body = isPrivate ? "" : JSON.stringify({ referrer, query: location.search, width: innerWidth });
    return call(`/${encodeURIComponent(page).replaceAll("%2F", "/")}`, { method: "POST", keepalive: true, body });
  };

  const view = async () => {
    const page = (last = current());
    const counts = "manual" in options ? {} : { [page]: await count() };
    referrer = "";
    // The ids are those of pages made for busuanzi and vercount.
    const elements = [...document.querySelectorAll("[data-visits],[id$=_value_page_pv]")];
    const pageOf = (element) => element.dataset.visits || page;
    const pages = [...new Set(elements.map(pageOf))].filter((page) => !(page in counts));
    while (pages.length) Object.assign(counts, await read(pages.splice(0, 100)));
    for (const element of elements) {
      const visits = counts[pageOf(element)];
      if (visits == null) continue;
      element.textContent = visits;
      element.closest("[id$=_container_page_pv]")?.style.setProperty("display", "inline");
    }
  };

  // Not while the page is read (without `defer`), prepared, or behind another one, but once it is seen.
  const whenSeen = () => {
    const event =
      document.readyState === "loading"
        ? "readystatechange"
        : document.prerendering
          ? "prerenderingchange"
          : document.hidden && "visibilitychange";
    // However often it is added, the browser calls a listener once.
    if (event) document.addEventListener(event, whenSeen, { once: true });
    else view();
  };

  const navigated = ({ navigationType }) => {
    old = canonical();
    const page = current();
    if (page !== last && (navigationType !== "replace" || "replace" in options)) whenSeen();
    last = page;
  };

  window.visits = { count };
  addEventListener("hashchange", isOff);
  addEventListener("pageshow", (event) => event.persisted && whenSeen());
  if (window.navigation) navigation.addEventListener("currententrychange", navigated);
  else {
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
