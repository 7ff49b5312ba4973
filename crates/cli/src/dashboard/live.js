// The connection, the services, and what can be done with them.

const token = location.pathname.split('/')[1];
const HISTORY = 60;
const rows = new Map();

function select(name) {
  known.selected = name;
  $('log-of').value = log.hues.has(name) ? name : '';
  updatePicture();
  showLog();
}

async function act(verb, container, button) {
  button.disabled = true;
  try {
    const response = await fetch(`${verb}/${container}`, { method: 'POST', headers: { 'X-Inception-Token': token } });
    if (response.status === 409) {
      const answer = await response.json();
      note(`${verb} ${container}: ${answer.error}`, answer.hint);
    } else if (!response.ok) {
      note(`${verb} ${container}: ${(await response.text()).trim()}`);
    }
  } catch {
    note(`${verb} ${container}: no answer`);
  } finally {
    button.disabled = false;
  }
}

function makeRow(name) {
  const button = (verb, text) => {
    const node = html('button', { type: 'button', 'aria-label': `${text} ${name}`, 'data-act': verb }, text);
    node.addEventListener('click', () => act(verb, name, node));
    return node;
  };
  const gauge = (kind, drawing) => {
    const value = html('span', {});
    return [html('div', { class: 'gauge' }, html('div', { class: 'top' }, html('span', { class: 'kind' }, kind), value), drawing), value];
  };
  const path = svg('path');
  const fill = html('i');
  const track = html('span', { class: 'track' }, fill);
  const [cpu, cpuValue] = gauge('CPU', svg('svg', { class: 'spark', viewBox: '0 0 100 18', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, path));
  const [memory, memoryValue] = gauge('memory', track);
  const row = {
    state: html('span', { class: 'state' }), rest: html('div', { class: 'rest' }), path, fill, track, cpuValue, memoryValue, history: [],
    start: button('start', 'Start'), restart: button('restart', 'Restart'), stop: button('stop', 'Stop'),
  };
  row.node = html('li', { class: 'row', 'data-container': name },
    html('div', { class: 'who' }, html('span', { class: 'dot' }), html('div', {}, html('b', {}, name), row.state)),
    cpu, memory, row.rest, html('div', { class: 'acts' }, row.start, row.restart, row.stop));
  return row;
}

function limited(bound, show) {
  if (!bound) return '';
  return ` / ${show(bound.value)}${bound.enforced ? '' : '°'}`;
}

function updateRow(row, reading) {
  const usage = reading.usage;
  mark(row.node, 'data-tone', tone(reading));
  row.node.classList.toggle('idle', !usage);
  say(row.state, words(reading));
  const runs = ['running', 'paused', 'restarting', 'waiting'].includes(reading.state);
  row.start.hidden = runs || reading.state === 'stopping' || reading.state === 'draining';
  row.restart.hidden = !runs;
  row.stop.hidden = !runs;
  const rest = [];
  if (reading.uptime !== null) rest.push(`up ${age(reading.uptime)}`);
  if (usage?.network_rate) rest.push(`↓ ${decimal(usage.network_rate.in)}/s ↑ ${decimal(usage.network_rate.out)}/s`);
  if (usage) rest.push(`${usage.pids}${limited(usage.pids_limit, String)} tasks`);
  if (reading.restarts) rest.push(`${reading.restarts} restart${reading.restarts > 1 ? 's' : ''}`);
  if (usage?.memory.oom_kills) rest.push(`${usage.memory.oom_kills} killed for memory`);
  const waits = usage ? ['cpu', 'memory', 'io'].filter((kind) => usage.pressure[kind]?.some.avg10 >= 1) : [];
  for (const kind of waits) rest.push(`${kind} pressure ${percent(usage.pressure[kind].some.avg10)}`);
  say(row.rest, rest.join(' · '));
  if (!usage) {
    row.history = [];
    return;
  }
  const cpu = usage.cpu_percent;
  const cores = usage.cpu_limit === null ? '' : ` / ${percent(usage.cpu_limit * 100)}`;
  say(row.cpuValue, cpu === null ? '–' : percent(cpu) + cores);
  if (cpu !== null) row.history.push(cpu);
  row.history = row.history.slice(-HISTORY);
  const most = Math.max(5, (usage.cpu_limit ?? 0) * 25, ...row.history);
  const points = row.history.map((value, index) =>
    `${(100 - ((row.history.length - 1 - index) * 100) / (HISTORY - 1)).toFixed(1)} ${(17 - (value / most) * 16).toFixed(1)}`);
  if (points.length) mark(row.path, 'd', points.length > 1 ? `M${points.join('L')}` : `M98.3 ${points[0].split(' ')[1]}L${points[0]}`);
  const memory = usage.memory;
  say(row.memoryValue, binary(memory.bytes) + limited(memory.limit, binary));
  const share = memory.limit ? (memory.bytes / memory.limit.value) * 100 : memory.percent;
  row.fill.style.width = `${Math.min(100, share).toFixed(1)}%`;
  const heat = !memory.limit ? 'loose' : share >= 90 ? 'hot' : share >= 75 ? 'warm' : '';
  mark(row.track, 'class', `track ${heat}`.trim());
  mark(row.track, 'title', memory.limit ? `${percent(share)} of the limit` : `${percent(share)} of this machine's memory; there is no limit`);
}

function updateRows(readings) {
  const names = readings.map((reading) => reading.service);
  for (const [name, row] of rows) {
    if (names.includes(name)) continue;
    row.node.remove();
    rows.delete(name);
  }
  // As in the picture; what the topology does not have yet comes last.
  const groups = new Set(inOrder(known.topology?.services ?? []).map((service) => service.name));
  for (const reading of readings) groups.add(reading.group);
  [...groups].flatMap(replicas).forEach((reading, index) => {
    let row = rows.get(reading.service);
    if (!row) rows.set(reading.service, (row = makeRow(reading.service)));
    if ($('rows').children[index] !== row.node) $('rows').insertBefore(row.node, $('rows').children[index] ?? null);
    updateRow(row, reading);
  });
}

function updateTotals(readings) {
  const used = readings.flatMap((reading) => (reading.usage ? [reading.usage] : []));
  const loose = used.some((usage) => [usage.memory.limit, usage.pids_limit].some((limit) => limit && !limit.enforced));
  say($('loose'), loose ? '° is asked for, and not enforced on this machine' : '');
  const up = readings.filter((reading) => reading.state === 'running').length;
  say($('total-running'), `${up} of ${readings.length}`);
  say($('total-cpu'), percent(used.reduce((sum, usage) => sum + (usage.cpu_percent ?? 0), 0)));
  const memory = used.reduce((sum, usage) => sum + usage.memory.bytes, 0);
  say($('total-memory'), binary(memory));
  say($('total-of'), known.hostMemory ? ` of ${binary(known.hostMemory)}` : '');
  const trouble = readings.filter((reading) => tone(reading) === 'bad').length;
  document.title = `${trouble ? `(${trouble}!) ` : ''}${document.body.dataset.stack} · inception-run`;
}

// The feed. A page that nobody sees listens to nothing: a browser has few connections for all of its tabs.
const feed = { source: null, retry: 0, timer: 0, heard: 0, over: false };

function status(text, kind) {
  say($('connection-text'), text);
  mark($('connection'), 'data-tone', kind);
}

function connect() {
  clearTimeout(feed.timer);
  feed.source?.close();
  const source = new EventSource('feed');
  feed.source = source;
  status('connecting', 'busy');
  const on = (name, then) => source.addEventListener(name, (message) => {
    feed.heard = Date.now();
    then(JSON.parse(message.data));
  });
  on('hello', (hello) => {
    feed.retry = 0;
    feed.over = false;
    known.hostMemory = hello.host_memory;
    status('live', 'good');
    clearLog();
    clearEvents();
  });
  on('topology', (topology) => {
    known.topology = topology;
    drawPicture();
  });
  on('readings', (readings) => {
    known.readings = readings;
    status('live', 'good');
    updateTotals(readings);
    updateRows(readings);
    drawPicture();
    updatePicture();
  });
  on('lines', addLines);
  on('events', addEvents);
  on('missed', (count) => addGap(`… ${count} lines and events were left out: they came faster than this page could read …`));
  on('warning', (text) => addGap(text));
  on('end', () => {
    feed.over = true;
    source.close();
    status('the stack has ended', 'off');
  });
  source.addEventListener('error', () => {
    if (feed.over) return;
    // Instead of the browser's own way, which gives up when it is told to come later.
    source.close();
    feed.retry = Math.min(feed.retry + 1, 5);
    status(`no connection; next try in ${feed.retry} s`, 'bad');
    feed.timer = setTimeout(connect, feed.retry * 1000);
  });
}

setInterval(() => {
  const open = feed.source?.readyState === EventSource.OPEN;
  if (open && Date.now() - feed.heard > 5000) status('nothing was heard for a while', 'busy');
}, 1000);

document.addEventListener('visibilitychange', () => {
  if (feed.over) return;
  if (document.hidden) {
    clearTimeout(feed.timer);
    feed.source?.close();
    status('paused while nobody looks', 'off');
  } else {
    connect();
  }
});
new ResizeObserver(() => requestAnimationFrame(drawPicture)).observe($('canvas'));
clearEvents();
clearLog();
if (document.hidden) status('paused while nobody looks', 'off');
else connect();
