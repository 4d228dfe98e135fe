/** How long one job takes on an idle worker: until its process begins, and until its result can be read. */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { findProgram, hasEnded, makeFolder, pause, runProcess, until } from '../children.js'
import { checkResults, countResults } from '../delivery.js'
import { compileProgram, emptyInput } from '../floor.js'
import { newUuid, startBroker } from '../queue.js'
import { interleave, makeEntry, quantile } from '../rounds.js'
import { startWorker, writeAlgorithms } from '../worker.js'

const WARM_UP_JOBS = 20
const POLL_MS = 0.2
/** Before the first look, so that looking does not disturb what is measured. */
const QUIET_MS = 12
const READABLE_MS = 20_000

export async function measure(bench) {
  const clock = await clockProgram(bench)
  if (clock === undefined) return undefined
  const floor = await compileProgram(bench, 'floor')
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ clock: { manifest: `command: ${JSON.stringify(clock)}\noutput: text\n` } })
  const perRound = Math.ceil((bench.quick ? 40 : 200) / bench.rounds)
  const contenders = []
  if (floor !== undefined) contenders.push({ name: 'floor: start', run: () => floorStarts(floor, clock[0], perRound) })
  for (const slots of [1, 4]) {
    const worker = await startWorker(broker, { name: 'qworker', slots, algorithms, type: 'clock' })
    const subject = { bench, broker, worker }
    contenders.push({ name: 'put to start', slots, run: () => timeJobs(subject, perRound, timeStart) })
    contenders.push({ name: 'put to readable', slots, run: () => timeReadable(subject, perRound) })
    await timeJobs(subject, WARM_UP_JOBS, timeStart)
  }
  const samples = await interleave(bench, contenders)
  return makeRow(contenders, samples)
}

function makeRow(contenders, samples) {
  const entries = []
  const besides = new Map()
  contenders.forEach(({ name, slots }, i) => {
    for (const [label, q] of Object.entries({ p50: 0.5, p99: 0.99 })) {
      const all = samples[i].flat()
      const perRound = samples[i].map((values) => quantile(values, q))
      const entry = { ...makeEntry(`${name}, ${label}`, 'ms', perRound, { slots }), median: quantile(all, q) }
      const beside = name === 'put to start' ? besides.get(label) : undefined
      if (slots === undefined) besides.set(label, entry)
      entries.push({
        ...entry,
        count: all.length,
        ...(beside && { ratio: entry.median / beside.median, ratio_to: beside.name }),
      })
    }
  })
  return {
    title: 'one job on an idle worker',
    how: [
      'start: when its main begins, by its own clock; readable: GET /<uuid> answers 200, asked each 0.2 ms on one connection',
      'p50 and p99 are of all jobs, min - max of those of the rounds',
    ],
    entries,
  }
}

async function clockProgram(bench) {
  const clock = await compileProgram(bench, 'clock')
  if (clock !== undefined) return [clock]
  const command = [findProgram('sh') ?? 'sh', '-c', 'date +%s%N']
  const { stdout } = await runProcess(command[0], command.slice(1)).catch(() => ({ stdout: '' }))
  if (/^\d{16,}\s*$/.test(stdout)) return command
  bench.leaveOut('latency: neither cc nor a date with nanoseconds')
  return undefined
}

async function floorStarts(floor, clock, count) {
  const { stdout } = await runProcess(floor, ['start', makeFolder('floor'), String(count), emptyInput(), clock])
  return JSON.parse(stdout).map((microseconds) => microseconds / 1000)
}

/** What is added to performance.now() to be CLOCK_REALTIME in ms: the moment when Date turns to the next millisecond. */
function clockOffset() {
  const before = Date.now()
  for (;;) {
    const now = Date.now()
    if (now !== before) return now - performance.now()
  }
}

async function timeJobs({ bench, broker, worker }, count, time) {
  const values = []
  const uuids = []
  const faults = []
  const { client } = broker
  await client.use(worker.tube)
  const before = (await client.tubeStats(worker.tube))['cmd-delete']
  for (let i = 0; i < count; i++) {
    const uuid = newUuid()
    uuids.push(uuid)
    await pause(2 + Math.random() * 6)
    values.push(await time({ broker, worker, uuid, isGone: () => isGone(i) }))
  }
  async function isGone(done) {
    return (await client.tubeStats(worker.tube))['cmd-delete'] >= before + done + 1
  }
  worker.published += count
  const missing = checkResults(worker.results, uuids)
  faults.push(...missing)
  const published = countResults(worker.results)
  if (published !== worker.published) faults.push(`${worker.tube}: ${published} published of ${worker.published}`)
  const stats = await client.tubeStats(worker.tube)
  const deleted = stats['cmd-delete'] - before
  if (deleted !== count || stats['total-jobs'] !== worker.published)
    faults.push(
      `${worker.tube}: ${deleted} deleted of ${count}; ${stats['total-jobs']} accepted of ${worker.published}`,
    )
  bench.check('qworker', { accepted: count, published: count - missing.length, deleted }, faults)
  return values
}

const bodyOf = (uuid) => `[{"uuid":"${uuid}","type":"clock"},{}]`

async function timeStart({ broker, worker, uuid, isGone }) {
  const offset = clockOffset()
  const putAt = performance.now() + offset
  await broker.client.put([bodyOf(uuid)])
  await pause(QUIET_MS)
  await until('the job is done', isGone, { child: worker.child, everyMs: 3 })
  const document = readFileSync(join(worker.results, uuid.slice(0, 2), uuid, 'result.json'), 'utf8')
  return Number(JSON.parse(document).result) / 1e6 - putAt
}

async function timeReadable(subject, count) {
  const { port } = new URL(subject.worker.url)
  const socket = connect({ port: Number(port), host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  let answered
  let text = ''
  socket.on('data', (chunk) => {
    text += chunk.latin1Slice()
    const [head] = text.split('\r\n\r\n', 1)
    const length = /\r\ncontent-length: (\d+)/i.exec(head)?.[1]
    if (length === undefined || text.length < head.length + 4 + Number(length)) return
    text = ''
    answered(Number(head.slice(9, 12)))
  })
  const ask = (uuid) =>
    new Promise((done) => {
      answered = done
      socket.write(`GET /${uuid} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`)
    })
  const time = async ({ broker, worker, uuid, isGone }) => {
    const startedAt = performance.now()
    const inserted = broker.client.put([bodyOf(uuid)])
    while ((await ask(uuid)) !== 200) {
      if (performance.now() - startedAt > READABLE_MS || hasEnded(worker.child))
        throw new Error(`${uuid} cannot be read`)
      await pauseBriefly()
    }
    const ms = performance.now() - startedAt
    await inserted
    await until('the job is done', isGone, { child: worker.child, everyMs: 3 })
    return ms
  }
  try {
    return await timeJobs(subject, count, time)
  } finally {
    socket.destroy()
  }
}

/** Timers count whole milliseconds; the event loop goes round meanwhile. */
async function pauseBriefly() {
  const end = performance.now() + POLL_MS
  while (performance.now() < end) await new Promise((done) => setImmediate(done))
}
