// The log and the events. Of each container so many lines are kept, and so many are in the page.

const KEPT = 1000;
const SHOWN = 500;
const log = { lines: new Map(), hues: new Map(), waiting: [], scheduled: false };

// Colours and other commands to a terminal (ECMA-48) are left out, other control characters made visible.
function plain(text) {
  return text
    .replace(/\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\^_])/g, '')
    .replace(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, '\ufffd');
}

function hueOf(container) {
  if (!log.hues.has(container)) {
    log.hues.set(container, hue(log.hues.size));
    const options = [...log.hues.keys()].sort();
    $('log-of').replaceChildren(html('option', { value: '' }, 'all containers'), ...options.map((name) => html('option', { value: name }, name)));
    $('log-of').value = log.hues.has(known.selected) ? known.selected : '';
  }
  return log.hues.get(container);
}

function isShown(line) {
  if (line.gap) return true;
  const wanted = known.selected;
  if (wanted && line.service !== wanted && known.readings.find((r) => r.service === line.service)?.group !== wanted) return false;
  const filter = $('log-filter').value.toLowerCase();
  return !filter || line.plain.toLowerCase().includes(filter);
}

function lineNode(line) {
  if (line.gap) return html('div', { class: 'gap' }, line.gap);
  return html('div', { class: `${line.stream} ${hueOf(line.service)}` },
    html('time', {}, clock(line.time)), ' ', html('b', {}, line.service), ' ', html('span', {}, line.plain));
}

function clearLog() {
  log.lines.clear();
  log.waiting = [];
  showLog();
}

function addLines(lines) {
  for (const line of lines) {
    line.plain = plain(line.text);
    hueOf(line.service);
    const kept = log.lines.get(line.service) ?? [];
    kept.push(line);
    if (kept.length > KEPT) kept.splice(0, kept.length - KEPT);
    log.lines.set(line.service, kept);
  }
  schedule(lines);
}

function addGap(text) {
  schedule([{ gap: text }]);
}

// Once for each picture that the screen shows, however much comes.
function schedule(lines) {
  log.waiting.push(...lines);
  if (log.waiting.length > SHOWN) log.waiting.splice(0, log.waiting.length - SHOWN);
  if (log.scheduled) return;
  log.scheduled = true;
  requestAnimationFrame(() => {
    log.scheduled = false;
    append(log.waiting.splice(0).filter(isShown));
  });
}

function append(lines) {
  const view = $('lines');
  if (!lines.length) return;
  view.querySelector('.empty')?.remove();
  view.append(...lines.map(lineNode));
  if ($('log-follow').checked) {
    while (view.children.length > SHOWN) view.firstChild.remove();
    view.scrollTop = view.scrollHeight;
  } else {
    // What somebody is reading must not move away; twice as much is the end of that.
    while (view.children.length > 2 * SHOWN) view.firstChild.remove();
  }
}

// Everything again: another container, or another filter.
function showLog() {
  const all = [...log.lines.values()].flat().filter(isShown).sort((one, other) => one.time - other.time);
  $('lines').replaceChildren(...all.slice(-SHOWN).map(lineNode));
  if (!all.length) $('lines').append(html('div', { class: 'empty' }, log.lines.size ? 'No line matches.' : 'Nothing was written yet.'));
  $('lines').scrollTop = $('lines').scrollHeight;
}

function clearEvents() {
  $('happenings').replaceChildren(html('li', { class: 'empty' }, 'Nothing has happened yet.'));
}

function addEvents(events) {
  const list = $('happenings');
  if (events.length) list.querySelector('.empty')?.remove();
  for (const event of events) {
    if (event.is_end) known.ends.set(event.container, event.alarming);
    list.prepend(html('li', { class: event.alarming ? 'alarming' : 'usual' }, html('time', {}, clock(event.time)),
      html('p', {}, event.container === null ? null : html('b', {}, `${event.container} `), html('span', {}, plain(event.text.trim())))));
  }
  while (list.children.length > 200) list.lastChild.remove();
}

$('log-filter').addEventListener('input', showLog);
$('log-of').addEventListener('change', (event) => select(event.target.value));
$('log-follow').addEventListener('change', (event) => {
  if (event.target.checked) $('lines').scrollTop = $('lines').scrollHeight;
});
$('lines').addEventListener('scroll', () => {
  const view = $('lines');
  $('log-follow').checked = view.scrollHeight - view.scrollTop - view.clientHeight < 24;
});
