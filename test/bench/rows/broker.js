/** The embedded broker beside beanstalkd, journal on, in one run: rates, then memory and restart with many jobs waiting. */

import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { findProgram, freePort, makeFolder, PROJECT, startProcess, stopProcess, until } from '../children.js'
import { memoryMb } from '../proc.js'
import { interleave, makeEntry } from '../rounds.js'

const IN_FLIGHT = 256
const WORKERS = 4
const PUT = Buffer.from(`put 1337 0 60 109\r\n${'b'.repeat(109)}\r\n`)

export async function measure(bench) {
  const [puts, waiting] = bench.quick ? [10_000, 50_000] : [100_000, 1_000_000]
  const subjects = findProgram('beanstalkd') === undefined ? [EMBEDDED] : [BEANSTALKD, EMBEDDED]
  const folders = subjects.map(({ name }) => makeFolder(name))
  const running = []
  for (const [i, subject] of subjects.entries()) running.push(await start(subject, folders[i]))
  const contenders = running.map(({ port }, i) => ({ run: () => measureRates(bench, subjects[i].name, port, puts) }))
  const samples = await interleave(bench, contenders)
  for (const { child } of running) await stopProcess(child, 'SIGKILL')
  const loaded = []
  for (const [i, subject] of subjects.entries()) loaded.push(await measureLoad(bench, subject, folders[i], waiting))
  return {
    title: 'the embedded broker beside beanstalkd, both with a journal',
    how: [
      `${WORKERS} connections reserve and delete; ${waiting.toLocaleString('en-US')} jobs wait for memory and restart`,
    ],
    entries: compare(subjects, samples, loaded),
  }
}

const RATES = {
  put: [`put, ${IN_FLIGHT} in flight`, 'jobs/s'],
  one: ['put, one at a time', 'jobs/s'],
  work: ['reserve + delete', 'jobs/s'],
}
const LOADS = {
  memory: ['memory, jobs waiting', 'MB'],
  restart: ['restart from the journal', 's'],
  after: ['memory after the restart', 'MB'],
  peak: ['peak memory of the restart', 'MB'],
}

/** beanstalkd's line, then ours beside it. */
function compare(subjects, samples, loaded) {
  const groups = [
    ...Object.entries(RATES).map(([key, label]) => [label, samples.map((each) => each.map((sample) => sample[key]))]),
    ...Object.entries(LOADS).map(([key, label]) => [label, loaded.map((sample) => [sample[key]])]),
  ]
  return groups
    .flatMap(([[what, unit], values]) => {
      const entries = subjects.map(({ name }, i) => makeEntry(`${what}: ${name}`, unit, values[i]))
      const [theirs, ours] = entries
      if (theirs === undefined || ours === undefined) return entries
      return [theirs, { ...ours, ratio: ours.median / theirs.median, ratio_to: subjects[0].name }]
    })
    .filter((entry) => entry !== undefined)
}

const BEANSTALKD = {
  name: 'beanstalkd',
  async spawn(folder) {
    const port = await freePort()
    return { child: startProcess('beanstalkd', ['-l', '127.0.0.1', '-p', String(port), '-b', folder]), port }
  },
}

const EMBEDDED = {
  name: 'embedded',
  async spawn(folder) {
    const args = [join(PROJECT, 'test', 'broker', 'serve.js'), folder, 'interval']
    const child = startProcess(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    const [line] = await once(child.stdout, 'data')
    return { child, port: Number(String(line).split(' ')[1]) }
  },
}

async function open(port) {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  return socket
}

/** Starts it and waits until it answers; tells how long that took. */
async function start(subject, folder) {
  const startedAt = performance.now()
  const { child, port } = await subject.spawn(folder)
  const answers = async () => {
    const socket = await open(port)
    socket.write('list-tube-used\r\n')
    await once(socket, 'data')
    return socket.destroy()
  }
  await until(`${subject.name} answers`, () => answers().catch(() => undefined), { child, ms: 120_000 })
  return { child, port, seconds: (performance.now() - startedAt) / 1000 }
}

async function measureRates(bench, name, port, puts) {
  const few = puts / 10
  const many = await put(port, puts, IN_FLIGHT)
  const done = await workAll(port, WORKERS)
  const singly = await put(port, few, 1)
  const rest = await workAll(port, WORKERS)
  const accepted = many.accepted + singly.accepted
  const deleted = done.jobs + rest.jobs
  const faults =
    accepted === puts + few && deleted === accepted ? [] : [`${name}: ${deleted} of ${accepted} jobs came out`]
  bench.check(name, { accepted, deleted }, faults)
  return { put: many.rate, one: singly.rate, work: done.rate }
}

async function measureLoad(bench, subject, folder, waiting) {
  const { child, port } = await start(subject, folder)
  const { accepted } = await put(port, waiting, 1024)
  const memory = memoryMb(child.pid, 'VmRSS')
  await stopProcess(child, 'SIGKILL')
  const again = await start(subject, folder)
  const kept = await countReady(again.port)
  bench.check(
    subject.name,
    { accepted, kept },
    kept === waiting ? [] : [`${subject.name}: ${kept} of ${waiting} jobs kept`],
  )
  const after = memoryMb(again.child.pid, 'VmRSS')
  const peak = memoryMb(again.child.pid, 'VmHWM')
  await stopProcess(again.child, 'SIGKILL')
  return { memory, restart: again.seconds, after, peak }
}

async function countReady(port) {
  const socket = await open(port)
  socket.write('stats\r\n')
  let text = ''
  for await (const bytes of socket) {
    text += bytes.latin1Slice()
    if (text.endsWith('\n\r\n')) break
  }
  socket.destroy()
  return Number(/^current-jobs-ready: (\d+)$/m.exec(text)?.[1])
}

/** Puts on one connection, so many in flight. */
async function put(port, count, inFlight) {
  const socket = await open(port)
  const startedAt = performance.now()
  let sent = 0
  let answered = 0
  let accepted = 0
  const fill = () => {
    const more = Math.min(inFlight - (sent - answered), count - sent)
    if (more <= 0) return
    socket.write(Buffer.concat(Array(more).fill(PUT)))
    sent += more
  }
  fill()
  let isAtLine = true
  for await (const bytes of socket) {
    for (let at = 0; at < bytes.length; ) {
      // `INSERTED`, and no other answer begins so.
      if (isAtLine && bytes[at] === 73) accepted++
      const end = bytes.indexOf(10, at)
      isAtLine = end >= 0
      if (!isAtLine) break
      answered++
      at = end + 1
    }
    if (answered === count) break
    // Half a window at a time: a write for each reply would measure the client.
    if (sent - answered <= inFlight / 2) fill()
  }
  socket.destroy()
  return { rate: (count / (performance.now() - startedAt)) * 1000, accepted }
}

/** Reserve and delete, one command at a time, until the jobs are gone. */
async function work(port) {
  const socket = await open(port)
  let jobs = 0
  let pending = ''
  socket.write('reserve-with-timeout 0\r\n')
  for await (const bytes of socket) {
    pending += bytes.toString('latin1')
    if (!pending.endsWith('\r\n')) continue
    if (pending.startsWith('RESERVED ')) {
      if (pending.indexOf('\r\n') === pending.length - 2) continue
      socket.write(`delete ${pending.slice(9, pending.indexOf(' ', 9))}\r\n`)
      jobs++
    } else if (pending === 'DELETED\r\n') {
      socket.write('reserve-with-timeout 0\r\n')
    } else {
      break
    }
    pending = ''
  }
  socket.destroy()
  return jobs
}

async function workAll(port, connections) {
  const startedAt = performance.now()
  const jobs = (await Promise.all(Array.from({ length: connections }, () => work(port)))).reduce((a, b) => a + b)
  return { jobs, rate: (jobs / (performance.now() - startedAt)) * 1000 }
}
