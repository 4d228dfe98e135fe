// `qproducer --batch` beside a bare client that pipelines the same puts, each on a new broker, in turns: jobs a second.
//     npm run build && node test/bench/batch.js [jobs] [rounds]
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const JOBS = Number(process.argv[2] ?? 300_000)
const ROUNDS = Number(process.argv[3] ?? 5)
const IN_FLIGHT = 256
const BIN = join(import.meta.dirname, '..', '..', 'bin')
const folder = mkdtempSync(join(tmpdir(), 'qworker-bench-'))
const file = join(folder, 'jobs.ndjson')
const makePayload = (i) => `{"seconds": 0, "n": ${i}, "name": "task number ${i}"}`
writeFileSync(file, Array.from({ length: JOBS }, (_, i) => `${makePayload(i)}\n`).join(''))

const freePort = async () => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

const open = async (port) => {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  return socket
}

const BROKERS = {
  beanstalkd: (port) => spawn('beanstalkd', ['-l', '127.0.0.1', '-p', String(port)], { stdio: 'ignore' }),
  embedded: (port) => {
    const env = { PATH: process.env.PATH, RESULT_BASEDIR: mkdtempSync(join(folder, 'broker-')) }
    return spawn(process.execPath, [join(BIN, 'qworker'), 'broker', '-p', String(port)], { env, stdio: 'ignore' })
  },
}

async function onBroker(name, put) {
  const port = await freePort()
  const child = BROKERS[name](port)
  for (let isUp = false; !isUp; ) {
    isUp = await open(port).then(
      (socket) => socket.destroy(),
      () => new Promise((resolve) => setTimeout(resolve, 20, false)),
    )
  }
  const rate = await put(port)
  child.kill('SIGKILL')
  await once(child, 'exit')
  return rate
}

async function putBare(port) {
  const socket = await open(port)
  const startedAt = performance.now()
  let sent = 0
  let answered = 0
  const fill = () => {
    let text = ''
    for (const end = Math.min(answered + IN_FLIGHT, JOBS); sent < end; sent++) {
      const body = `[{"uuid":"${String(sent).padStart(32, '0')}","type":"sleep"},${makePayload(sent)}]`
      text += `put 1337 0 60 ${body.length}\r\n${body}\r\n`
    }
    socket.write(text, 'latin1')
  }
  fill()
  for await (const bytes of socket) {
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) answered++
    if (answered === JOBS) break
    if (sent < JOBS && sent - answered <= IN_FLIGHT / 2) fill()
  }
  socket.destroy()
  return (JOBS / (performance.now() - startedAt)) * 1000
}

async function putBatch(port) {
  const env = { PATH: process.env.PATH, BEANSTALK_SERVER: '127.0.0.1', BEANSTALK_PORT: String(port) }
  const args = [join(BIN, 'qproducer'), '-a', 'sleep', '--batch', file]
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let told = ''
  child.stdout.on('data', (chunk) => {
    told += chunk
  })
  await once(child, 'close')
  return Number(/\((\d+)\/s\)/.exec(told)?.[1])
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]

for (const name of Object.keys(BROKERS)) {
  const [bare, batch] = [[], []]
  for (let round = 0; round < ROUNDS; round++) {
    bare.push(await onBroker(name, putBare))
    batch.push(await onBroker(name, putBatch))
  }
  const ratio = median(batch.map((rate, i) => rate / bare[i])).toFixed(2)
  console.log(`${name}: bare ${Math.round(median(bare))}/s, batch ${Math.round(median(batch))}/s, ratio ${ratio}`)
}
rmSync(folder, { recursive: true, force: true })
