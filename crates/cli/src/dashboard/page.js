// Elements, words and figures. All text of others becomes a text node; nothing is ever read as markup.

const SVG = 'http://www.w3.org/2000/svg';
const $ = (id) => document.getElementById(id);

function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const html = (tag, attributes = {}, ...children) => element(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => element(document.createElementNS(SVG, tag), attributes, children);

// Changes nothing where nothing has changed: what is read aloud, selected or hovered stays as it is.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function binary(bytes) {
  for (const [power, unit] of [[4, 'TiB'], [3, 'GiB'], [2, 'MiB'], [1, 'KiB']]) {
    const value = bytes / 1024 ** power;
    if (value >= 1) return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
}
function decimal(bytes) {
  for (const [power, unit] of [[3, 'GB'], [2, 'MB'], [1, 'kB']]) {
    const value = bytes / 1000 ** power;
    if (value >= 1) return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
}
const percent = (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`;
function age(seconds) {
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}
// Nanoseconds since 1970, in the reader's own time zone.
function clock(nanoseconds) {
  return new Date(nanoseconds / 1e6).toLocaleTimeString([], { hour12: false });
}

// The state of a container in words.
function words(reading) {
  let text = reading.state;
  if (reading.exit_code !== null && (text === 'exited' || text === 'restarting')) {
    text += reading.oom_killed ? ` (${reading.exit_code}, out of memory)` : ` (${reading.exit_code})`;
  }
  return reading.health === null ? text : `${text}, ${reading.health}`;
}

// How it is: good, busy (on its way somewhere), bad, or off.
function tone(reading) {
  if (reading.health === 'unhealthy') return 'bad';
  switch (reading.state) {
    case 'running': return reading.health === 'starting' ? 'busy' : 'good';
    // One that was stopped has the status of a signal, too.
    case 'exited': return (known.ends.get(reading.service) ?? reading.exit_code !== 0) ? 'bad' : 'off';
    case 'created': return 'off';
    default: return 'busy';
  }
}

// The worst of several.
function worst(readings) {
  const tones = readings.map(tone);
  return ['bad', 'busy', 'good', 'off'].find((each) => tones.includes(each)) ?? 'off';
}

// A colour for the n-th network or container.
const hue = (index) => `net${index % 6}`;

// What is known. `ends`: whether the last end of a container was one to worry about.
const known = { topology: null, readings: [], ends: new Map(), hostMemory: 0, selected: '' };

// The containers of a service.
const replicas = (service) => known.readings.filter((reading) => reading.group === service);

// Services as one reads them: whom the world reaches first, and nobody before those that wait for it.
function inOrder(services) {
  const left = [...services].reverse();
  const ordered = [];
  while (left.length) {
    const waited = new Set(left.flatMap((service) => service.needs.map((need) => need.service)));
    const free = left.filter((service) => !waited.has(service.name));
    const placed = new Set(ordered.flatMap((service) => service.needs.map((need) => need.service)));
    const next = free.find((service) => replicas(service.name).some((reading) => reading.ports.length))
      ?? free.find((service) => placed.has(service.name)) ?? free[0] ?? left[0];
    ordered.push(next);
    left.splice(left.indexOf(next), 1);
  }
  return ordered;
}

// A message that stays until it is closed.
function note(text, hint) {
  const close = html('button', { type: 'button' }, 'Close');
  const node = html('div', { class: 'note' }, html('p', {}, text, hint ? html('span', { class: 'hint' }, hint) : null), close);
  close.addEventListener('click', () => node.remove());
  $('notes').append(node);
  while ($('notes').children.length > 4) $('notes').firstChild.remove();
}
