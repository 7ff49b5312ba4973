// The picture: services in a line, what they wait for as arcs beside it, and the networks as rails that they hang on,
// this machine being one of them. Wide pages have the line from left to right, narrow ones from top to bottom; both are
// the same drawing in coordinates along the line and across it.

const picture = { width: 0, nodes: new Map(), drawn: '' };

// `127.0.0.1:8443->443/tcp` without what goes without saying.
function portText(port) {
  const [outside, inside] = port.split('->');
  const number = outside.slice(outside.lastIndexOf(':') + 1);
  return inside ? `${number} → ${inside.replace('/tcp', '')}` : port;
}

function portsOf(service) {
  return [...new Set(replicas(service).flatMap((reading) => reading.ports))];
}

function fit(text, room) {
  return text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`;
}

function drawPicture() {
  const topology = known.topology;
  const width = $('canvas').clientWidth;
  if (!topology || !width) return;
  const services = inOrder(topology.services);
  const ports = new Map(services.map((service) => [service.name, portsOf(service.name)]));
  const drawn = JSON.stringify([topology, [...ports], width]);
  if (drawn === picture.drawn) return;
  picture.drawn = drawn;
  picture.nodes.clear();

  const rails = [{ name: 'this machine', note: '', style: 'host' }].concat(
    topology.networks.map((network, index) => ({
      name: network.name, style: hue(index),
      note: network.subnets.join(', ') + (network.internal ? ' · internal' : ''),
    })));
  const label = Math.min(190, 14 + Math.max(...rails.map((rail) => Math.max(8 * rail.name.length, 6.4 * rail.note.length))));
  const across = width >= 700 && label + services.length * 150 <= width;
  const plan = across ? rowPlan(services, topology, width, label) : columnPlan(services, topology, width);
  const at = new Map(services.map((service, index) => [service.name, index]));
  const layers = { rails: svg('g'), taps: svg('g'), needs: svg('g'), ports: svg('g'), nodes: svg('g') };
  const root = svg('svg', {
    width: plan.width, height: plan.height, viewBox: `0 0 ${plan.width} ${plan.height}`,
    role: 'group', 'aria-label': 'services, networks, published ports and dependencies',
  }, layers.rails, layers.taps, layers.ports, layers.nodes, layers.needs);

  rails.forEach((rail, index) => plan.rail(layers.rails, rail, index));
  $('legend').classList.toggle('shown', !across);
  $('legend').replaceChildren(...rails.map((rail) =>
    html('li', { class: rail.style }, html('i'), rail.note ? `${rail.name} ${rail.note}` : rail.name)));

  services.forEach((service, index) => {
    const published = ports.get(service.name);
    const hung = topology.networks.map((network, number) => [network.name, number + 1]).filter(([name]) => service.networks.includes(name));
    hung.forEach(([, rail], number) => plan.tap(layers.taps, index, rail, number, hung.length, rails[rail].style));
    if (published.length || service.on_host) {
      const text = service.on_host ? ['host network'] : published.map(portText);
      const title = service.on_host ? `${service.name} has the network of this machine` : published.join('\n');
      plan.port(layers, index, text, title);
    }
    for (const need of service.needs.filter((need) => at.has(need.service))) {
      const until = { started: 'is started', healthy: 'is healthy', completed: 'has completed' }[need.condition];
      const arc = plan.need(index, at.get(need.service), need.condition === 'started');
      arc.dataset.from = service.name;
      arc.dataset.to = need.service;
      arc.setAttribute('aria-label', `${service.name} waits until ${need.service} ${until}`);
      arc.setAttribute('role', 'img');
      layers.needs.append(arc);
    }
    layers.nodes.append(makeNode(service, plan.box(index), across ? [] : published.map(portText)));
  });
  $('canvas').replaceChildren(root);
  updatePicture();
}

function arrow(x, y, angle) {
  return svg('path', { class: 'tip', d: 'M0 0 L-7 -3.6 L-7 3.6 Z', transform: `translate(${x} ${y}) rotate(${angle})` });
}

// From left to right: this machine above, then arcs, services, networks.
function rowPlan(services, topology, width, label) {
  const slot = Math.min(240, (width - label) / services.length);
  const box = { width: Math.min(slot - 26, 190), height: 74 };
  const reach = Math.max(0, ...services.flatMap((service, from) => service.needs.map((need) =>
    Math.abs(services.findIndex((other) => other.name === need.service) - from))));
  const top = 52 + (reach ? 22 + 14 * Math.min(reach, 5) : 8);
  const left = label + Math.max(0, (width - label - slot * services.length) / 2);
  const middle = (index) => left + slot * (index + 0.5);
  const railY = (index) => (index === 0 ? 20 : top + box.height + 34 + 34 * (index - 1));
  return {
    width, height: railY(topology.networks.length) + 24,
    box: (index) => ({ x: middle(index) - box.width / 2, y: top, ...box }),
    rail(layer, rail, index) {
      const y = railY(index);
      layer.append(svg('g', { class: rail.style },
        svg('line', { class: 'rail', x1: label, x2: width - 6, y1: y, y2: y }),
        svg('text', { class: 'rail-name', x: 0, y: rail.note ? y - 1 : y + 4 }, fit(rail.name, 20)),
        svg('text', { class: 'rail-note', x: 0, y: y + 13 }, fit(rail.note, 28))));
    },
    tap(layer, index, rail, number, count, style) {
      const x = middle(index) + (number - (count - 1) / 2) * 22;
      layer.append(svg('g', { class: style },
        svg('line', { class: 'tap', x1: x, x2: x, y1: top + box.height, y2: railY(rail) }),
        svg('circle', { class: 'stop', cx: x, cy: railY(rail), r: 4.5 })));
    },
    port(layers, index, texts, title) {
      const text = texts.length > 1 ? `${texts[0]}  +${texts.length - 1}` : texts[0];
      const half = text.length * 3.4 + 9;
      const x = middle(index);
      layers.taps.append(svg('g', { class: 'host' }, svg('line', { class: 'tap', x1: x, x2: x, y1: railY(0), y2: top })));
      layers.ports.append(svg('g', { class: 'port' },
        svg('rect', { x: x - half, y: railY(0) - 11, width: 2 * half, height: 22, rx: 11 }),
        svg('text', { x, y: railY(0) + 4 }, text), svg('title', {}, title)));
    },
    need(from, to, weak) {
      const side = Math.sign(to - from) || 1;
      const [x1, x2] = [middle(from) + side * box.width * 0.3, middle(to) - side * box.width * 0.3];
      const height = 22 + 14 * Math.min(Math.abs(to - from), 5);
      return svg('g', {},
        svg('path', { class: weak ? 'need weak' : 'need', d: `M${x1} ${top} C${x1} ${top - height} ${x2} ${top - height} ${x2} ${top - 6}` }),
        arrow(x2, top - 1, 90));
    },
  };
}

// From top to bottom: this machine at the left edge, then networks, services, arcs.
function columnPlan(services, topology, width) {
  const step = topology.networks.length > 5 ? 10 : 16;
  const left = 8 + step * (topology.networks.length + 1) + 8;
  const reach = Math.max(0, ...services.flatMap((service, from) => service.needs.map((need) =>
    Math.abs(services.findIndex((other) => other.name === need.service) - from))));
  const arcs = reach ? 14 + 9 * Math.min(reach, 4) : 4;
  const box = { width: Math.min(Math.max(120, width - left - arcs), 420), height: 66 };
  const slot = box.height + 14;
  const top = (index) => 6 + slot * index;
  const railX = (index) => 8 + step * index;
  const height = top(services.length);
  return {
    width: left + box.width + arcs, height,
    box: (index) => ({ x: left, y: top(index), ...box }),
    rail(layer, rail, index) {
      layer.append(svg('g', { class: rail.style },
        svg('line', { class: 'rail', x1: railX(index), x2: railX(index), y1: 6, y2: height - 14 }),
        svg('title', {}, `${rail.name} ${rail.note}`)));
    },
    tap(layer, index, rail, number, count, style) {
      const y = top(index) + (box.height * (number + 1.6)) / (count + 1.6);
      layer.append(svg('g', { class: style },
        svg('line', { class: 'tap', x1: railX(rail), x2: left, y1: y, y2: y }),
        svg('circle', { class: 'stop', cx: railX(rail), cy: y, r: 4 })));
    },
    port(layers, index, texts, title) {
      const y = top(index) + 14;
      layers.taps.append(svg('g', { class: 'host' },
        svg('line', { class: 'tap', x1: railX(0), x2: left, y1: y, y2: y }),
        svg('circle', { class: 'stop', cx: railX(0), cy: y, r: 4 }), svg('title', {}, title)));
    },
    need(from, to, weak) {
      const side = Math.sign(to - from) || 1;
      const [y1, y2] = [top(from) + box.height * (0.5 + 0.28 * side), top(to) + box.height * (0.5 - 0.28 * side)];
      const [x, depth] = [left + box.width, 8 + 12 * Math.min(Math.abs(to - from), 4)];
      return svg('g', {},
        svg('path', { class: weak ? 'need weak' : 'need', d: `M${x} ${y1} C${x + depth} ${y1} ${x + depth} ${y2} ${x + 6} ${y2}` }),
        arrow(x + 1, y2, 180));
    },
  };
}

function makeNode(service, box, ports) {
  const room = Math.floor((box.width - 40) / 7.6);
  const parts = {
    pips: svg('g'), word: svg('text', { class: 'word', x: box.x + 14, y: box.y + 41 }),
    figures: svg('text', { class: 'figures', x: box.x + 14, y: box.y + 58 }), box, room, service: service.name,
  };
  const name = svg('text', { class: 'name', x: box.x + 28, y: box.y + 23 }, fit(service.name, room));
  const sheet = svg('rect', { class: 'sheet', x: box.x + 5, y: box.y + 5, width: box.width, height: box.height, rx: 9, visibility: 'hidden' });
  parts.sheet = sheet;
  const node = svg('g', { class: 'node', tabindex: 0, role: 'button', 'data-service': service.name }, sheet,
    svg('rect', { class: 'box', x: box.x, y: box.y, width: box.width, height: box.height, rx: 9 }),
    name, parts.word, parts.figures, parts.pips);
  if (ports.length) {
    const text = ports.length > 1 ? `${ports[0]}  +${ports.length - 1}` : ports[0];
    node.append(svg('text', { class: 'figures', x: box.x + box.width - 12, y: box.y + 23, 'text-anchor': 'end' }, text));
  }
  parts.node = node;
  node.addEventListener('click', () => select(known.selected === service.name ? '' : service.name));
  node.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    node.dispatchEvent(new MouseEvent('click'));
  });
  const light = (on) => () => {
    for (const arc of $('canvas').querySelectorAll('[data-from]')) {
      const concerned = arc.dataset.from === service.name || arc.dataset.to === service.name;
      arc.classList.toggle('lit', on && concerned);
    }
  };
  for (const [event, on] of [['pointerenter', true], ['pointerleave', false], ['focus', true], ['blur', false]]) {
    node.addEventListener(event, light(on));
  }
  picture.nodes.set(service.name, parts);
  return node;
}

// The states in the picture that is there.
function updatePicture() {
  for (const [service, parts] of picture.nodes) {
    const all = replicas(service);
    const one = all.length === 1;
    const up = all.filter((reading) => reading.state === 'running');
    const ill = all.filter((reading) => tone(reading) === 'bad');
    let text = one ? words(all[0]) : `${up.length} of ${all.length} running`;
    if (!one && ill.length) text += `, ${ill.length} in trouble`;
    if (!all.length) text = known.readings.length ? 'no containers' : '';
    say(parts.word, fit(text, Math.floor((parts.box.width - 26) / 6)));
    const used = all.flatMap((reading) => (reading.usage ? [reading.usage] : []));
    const cpu = used.reduce((sum, usage) => sum + (usage.cpu_percent ?? 0), 0);
    const memory = used.reduce((sum, usage) => sum + usage.memory.bytes, 0);
    say(parts.figures, used.length ? `${percent(cpu)} · ${binary(memory)}` : '');
    mark(parts.node, 'data-tone', worst(all));
    mark(parts.node, 'aria-label', `${service}: ${text}`);
    mark(parts.node, 'aria-pressed', String(known.selected === service));
    mark(parts.sheet, 'visibility', all.length > 1 ? 'visible' : 'hidden');
    drawPips(parts, all);
  }
}

// A dot for each replica: the first before the name, all of them at the lower right when there are several.
function drawPips(parts, all) {
  const shown = all.length > 1 ? all.slice(0, 12) : all;
  const kinds = shown.map(tone).join();
  if (parts.kinds === kinds) return;
  parts.kinds = kinds;
  const { x, y, width, height } = parts.box;
  const dots = [svg('circle', { class: 'pip', 'data-tone': worst(all), cx: x + 18, cy: y + 18.5, r: 4 })];
  if (all.length > 1) {
    shown.forEach((reading, index) => dots.push(svg('circle', {
      class: 'pip', 'data-tone': tone(reading), cx: x + width - 14 - (shown.length - 1 - index) * 9, cy: y + height - 14, r: 3,
    }, svg('title', {}, `${reading.service}: ${words(reading)}`))));
  }
  parts.pips.replaceChildren(...dots);
}
