/**
 * What a worker holds after many jobs: memory, open descriptors, folders. Starts a private beanstalkd and a worker with
 * four slots, has it do 20,000 jobs that are nothing (`/bin/true`), and ends with 1 when one of the numbers after the
 * last job is more than a tenth above what it was after 2,000; garbage does not count. Needs `npm run build` first.
 *
 *     node test/bench/soak.js [jobs at which to look ...]
 *
 * RSS is read twice: as it is when the worker was idle for a while, and after a collection of garbage that we ask for.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const PROJECT = resolve(import.meta.dirname, '..', '..')
const SLOTS = 4
const BATCH = 500
const IDLE_MS = 5_000
const MAX_RATIO = 1.1
/** Shown and not judged: how much garbage there is when we look is V8's choice. */
const SHOWN_ONLY = new Set(['RSS MiB', 'of it heap MiB'])
const MIB = 2 ** 20

const marks = process.argv.slice(2).map(Number)
if (marks.length === 0) marks.push(2_000, 5_000, 10_000, 20_000)

const base = mkdtempSync(join(tmpdir(), 'qworker-soak-'))
const report = join(base, 'memory.json')
mkdirSync(join(base, 'results'))
mkdirSync(join(base, 'algorithms', 'nothing'), { recursive: true })
writeFileSync(join(base, 'algorithms', 'nothing', 'algorithm.yaml'), 'command: [/bin/true]\noutput: text\n')

/** Loaded into the worker before its own code: SIGUSR2 writes what its heap takes, collects garbage, and writes what is left. */
const PROBE = `import fs from 'node:fs'; process.on('SIGUSR2', () => { const before = process.memoryUsage(); gc(); gc();
  fs.writeFileSync('${report}.new', JSON.stringify({ before, after: process.memoryUsage() }));
  fs.renameSync('${report}.new', '${report}') })`

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  return port
}

async function until(holds) {
  while (!(await holds())) await sleep(50)
}

function ask(socket, text) {
  socket.write(text)
  return once(socket, 'data').then(([chunk]) => String(chunk))
}

async function putJobs(socket, count) {
  const jobs = Array.from({ length: count }, () => {
    const uuid = crypto.randomUUID().replaceAll('-', '')
    const body = `[{"uuid":"${uuid}","type":"nothing"},{}]`
    return `put 100 0 60 ${body.length}\r\n${body}\r\n`
  })
  let answered = 0
  const onReply = (chunk) => {
    answered += String(chunk).split('INSERTED').length - 1
  }
  socket.on('data', onReply)
  socket.write(jobs.join(''))
  await until(() => answered === count)
  socket.off('data', onReply)
}

async function look(worker) {
  await sleep(IDLE_MS)
  const status = readFileSync(`/proc/${worker.pid}/status`, 'utf8')
  const rss = Number(/^VmRSS:\s+(\d+)/m.exec(status)[1]) / 1024
  rmSync(report, { force: true })
  worker.kill('SIGUSR2')
  await until(() => existsSync(report))
  const { before, after } = JSON.parse(readFileSync(report, 'utf8'))
  const [workshop] = readdirSync(join(base, 'results', '.work'))
  return {
    'RSS MiB': rss,
    'of it heap MiB': before.heapTotal / MIB,
    'RSS after gc MiB': after.rss / MIB,
    'heap used after gc MiB': after.heapUsed / MIB,
    'external after gc MiB': after.external / MIB,
    descriptors: readdirSync(`/proc/${worker.pid}/fd`).length,
    'entries in .work': readdirSync(join(base, 'results', '.work', workshop)).length,
  }
}

async function soak(worker, url, socket) {
  const rows = []
  let put = 0
  const began = performance.now()
  for (const mark of marks) {
    while (put < mark) {
      const count = Math.min(BATCH, mark - put)
      await putJobs(socket, count)
      put += count
      await until(async () => (await (await fetch(`${url}healthz`)).json()).jobs.completed >= put)
    }
    const row = { jobs: mark, seconds: (performance.now() - began) / 1000, ...(await look(worker)) }
    rows.push(row)
    console.log(JSON.stringify(row, (_, value) => (typeof value === 'number' ? Math.round(value * 10) / 10 : value)))
  }
  return rows
}

function judge(rows) {
  const round = (value) => Math.round(value * 100) / 100
  console.table(rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [key, round(value)]))))
  const [first, last] = [rows[0], rows.at(-1)]
  let isGood = true
  for (const key of Object.keys(first).slice(2)) {
    const ratio = last[key] / Math.max(first[key], 1)
    const isTooMuch = ratio > MAX_RATIO && !SHOWN_ONLY.has(key)
    if (isTooMuch) isGood = false
    console.log(`${key}: ${round(ratio)}${isTooMuch ? '  TOO MUCH' : ''}`)
  }
  return isGood
}

const port = await freePort()
const broker = spawn('beanstalkd', ['-l', '127.0.0.1', '-p', String(port)], { stdio: 'ignore' })
await until(
  () =>
    new Promise((done) => {
      const socket = connect(port, '127.0.0.1', () => done(socket.destroy() !== undefined))
      socket.on('error', () => done(false))
    }),
)
const worker = spawn(join(PROJECT, 'bin', 'qworker'), ['-j', String(SLOTS)], {
  env: {
    PATH: process.env.PATH,
    NODE_OPTIONS: `--expose-gc --import data:text/javascript,${encodeURIComponent(PROBE)}`,
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: String(port),
    RESULT_BASEDIR: join(base, 'results'),
    ALGORITHM_DIRS: join(base, 'algorithms'),
    HTTP_PORT: '0',
    LOG_FORMAT: 'json',
  },
  stdio: ['ignore', 'pipe', 'inherit'],
})
let isGood = false
try {
  let url
  let said = ''
  worker.stdout.on('data', (chunk) => {
    if (url !== undefined) return
    said += chunk
    url = /"http":"([^"]+)"/.exec(said)?.[1]
  })
  await until(() => url !== undefined || worker.exitCode !== null)
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  await ask(socket, 'use default\r\n')
  isGood = judge(await soak(worker, url, socket))
  socket.destroy()
} finally {
  const ended = worker.exitCode === null ? once(worker, 'exit') : undefined
  worker.kill('SIGTERM')
  await ended
  broker.kill('SIGTERM')
  rmSync(base, { recursive: true, force: true })
}
process.exitCode = isGood ? 0 : 1
