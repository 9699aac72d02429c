'use strict';
// Shows the page again when something happened, and lets its clocks run. Without it the
// browser reloads the page by itself.
(() => {
  const seq = document.body.dataset.seq;
  const said = document.getElementById('said');
  const lamp = document.getElementById('lamp');
  const words = (secs) => {
    const s = Math.max(0, Math.round(secs));
    const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
    if (d > 0) return h > 0 ? d + 'd ' + h + 'h' : d + 'd';
    if (h > 0) return m > 0 ? h + 'h ' + m + 'm' : h + 'h';
    if (m > 0) return s % 60 > 0 ? m + 'm ' + s % 60 + 's' : m + 'm';
    return s + 's';
  };
  setInterval(() => {
    const now = Date.now() / 1000;
    for (const t of document.querySelectorAll('time[data-since]')) t.textContent = words(now - t.dataset.since) + ' ago';
    for (const t of document.querySelectorAll('time[data-until]')) {
      const left = t.dataset.until - now;
      t.textContent = left > 0 ? 'in ' + words(left) : words(-left) + ' ago';
    }
  }, 1000);
  if (!seq) return;

  let due = 0, asking = false, shown = Date.now();
  const soon = (wait) => { if (!due) due = setTimeout(refresh, wait); };
  async function refresh() {
    due = 0;
    const at = document.activeElement;
    if (document.hidden) return;
    if (asking || at && at.matches('main input, main select, main textarea')) { soon(2000); return; }
    asking = true;
    try {
      const answer = await fetch(location.href, {headers: {'Nixfleet-Part': 'main'}, cache: 'no-store'});
      if (!answer.ok) throw new Error(String(answer.status));
      const held = document.createElement('template');
      held.innerHTML = await answer.text();
      const next = held.content.querySelector('main');
      if (!next) throw new Error('no main part');
      const open = new Set([...document.querySelectorAll('main details[open]')].map((d) => d.id));
      const focus = at && at.closest('main') ? at.id || at.getAttribute('href') : null;
      document.querySelector('main').replaceWith(next);
      for (const d of document.querySelectorAll('main details')) if (open.has(d.id)) d.open = true;
      if (focus) {
        const again = document.getElementById(focus) ||
          [...document.querySelectorAll('main a')].find((a) => a.getAttribute('href') === focus);
        if (again) again.focus({preventScroll: true});
      }
      shown = Date.now();
      lamp.dataset.state = 'live';
      said.textContent = 'Live';
    } catch {
      lamp.dataset.state = 'lost';
      said.textContent = 'No answer; what is shown is old';
    }
    asking = false;
  }
  const events = new EventSource('/live?after=' + seq);
  events.onopen = () => { lamp.dataset.state = 'live'; said.textContent = 'Live'; };
  events.onmessage = () => soon(250);
  events.onerror = () => { lamp.dataset.state = 'lost'; said.textContent = 'Not connected; trying again'; };
  setInterval(() => { if (Date.now() - shown > 20000) soon(0); }, 5000);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) soon(0); });
})();
