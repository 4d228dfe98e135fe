// The embedded broker beside beanstalkd, journal on, in one run: rates, then memory and restart at a million jobs.
//     npm run build && node test/bench/broker.js [puts] [waiting jobs]
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const PUTS = Number(process.argv[2] ?? 100_000)
const WAITING = Number(process.argv[3] ?? 1_000_000)
const ROUNDS = 5
const IN_FLIGHT = 256
const PUT = Buffer.from(`put 1337 0 60 109\r\n${'b'.repeat(109)}\r\n`)

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

const SUBJECTS = {
  beanstalkd: async (folder) => {
    const port = await freePort()
    return {
      child: spawn('beanstalkd', ['-l', '127.0.0.1', '-p', String(port), '-b', folder], { stdio: 'ignore' }),
      port,
    }
  },
  embedded: async (folder) => {
    const args = [join(import.meta.dirname, '../broker/serve.js'), folder, 'interval']
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    const [line] = await once(child.stdout, 'data')
    return { child, port: Number(String(line).split(' ')[1]) }
  },
}

/** Starts it and waits until it answers; tells how long that took. */
async function start(name, folder) {
  const startedAt = performance.now()
  const { child, port } = await SUBJECTS[name](folder)
  for (;;) {
    try {
      const socket = await open(port)
      socket.write('list-tube-used\r\n')
      await once(socket, 'data')
      socket.destroy()
      return { child, port, ms: performance.now() - startedAt }
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
}

async function stop(child) {
  child.kill('SIGKILL')
  await once(child, 'exit')
}

/** Puts on one connection, so many in flight; puts a second. */
async function put(port, count, inFlight) {
  const socket = await open(port)
  const startedAt = performance.now()
  let sent = 0
  let answered = 0
  const fill = () => {
    const more = Math.min(inFlight - (sent - answered), count - sent)
    if (more <= 0) return
    socket.write(Buffer.concat(Array(more).fill(PUT)))
    sent += more
  }
  fill()
  for await (const bytes of socket) {
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) answered++
    if (answered === count) break
    // Half a window at a time: a write for each reply would measure the client.
    if (sent - answered <= inFlight / 2) fill()
  }
  socket.destroy()
  return (count / (performance.now() - startedAt)) * 1000
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
  const jobs = await Promise.all(Array.from({ length: connections }, () => work(port)))
  return (jobs.reduce((a, b) => a + b) / (performance.now() - startedAt)) * 1000
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
const rss = (pid, key) =>
  Number(new RegExp(`${key}:\\s+(\\d+)`).exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024

const names = Object.keys(SUBJECTS)
const folders = Object.fromEntries(names.map((name) => [name, mkdtempSync(join(tmpdir(), `bench-${name}-`))]))
const show = (what, values, unit, digits = 0) => {
  const [theirs, ours] = names.map((name) => values[name])
  const ratio = (ours / theirs).toFixed(2)
  console.log(
    `${what.padEnd(34)} ${names.map((name) => `${name} ${values[name].toFixed(digits)} ${unit}`).join('   ')}   ratio ${ratio}`,
  )
}

const children = []
try {
  const rates = Object.fromEntries(names.map((name) => [name, { put: [], one: [], work: [] }]))
  const running = {}
  for (const name of names) {
    running[name] = await start(name, folders[name])
    children.push(running[name].child)
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const name of names) {
      rates[name].put.push(await put(running[name].port, PUTS, IN_FLIGHT))
      rates[name].work.push(await workAll(running[name].port, 4))
      rates[name].one.push(await put(running[name].port, PUTS / 10, 1))
      await workAll(running[name].port, 4)
    }
  }
  const of = (key) => Object.fromEntries(names.map((name) => [name, median(rates[name][key])]))
  show(`put, ${IN_FLIGHT} in flight`, of('put'), '/s')
  show('put, one at a time', of('one'), '/s')
  show('reserve + delete, 4 connections', of('work'), 'jobs/s')
  for (const name of names) await stop(running[name].child)

  const memory = {}
  const restart = {}
  const peak = {}
  const after = {}
  for (const name of names) {
    const { child, port } = await start(name, folders[name])
    children.push(child)
    await put(port, WAITING, 1024)
    memory[name] = rss(child.pid, 'VmRSS')
    await stop(child)
    const again = await start(name, folders[name])
    children.push(again.child)
    restart[name] = again.ms / 1000
    after[name] = rss(again.child.pid, 'VmRSS')
    peak[name] = rss(again.child.pid, 'VmHWM')
    await stop(again.child)
  }
  show(`memory, ${WAITING} jobs waiting`, memory, 'MB')
  show('restart from the journal', restart, 's', 1)
  show('memory after the restart', after, 'MB')
  show('memory at most during the restart', peak, 'MB')
} finally {
  for (const child of children) child.kill('SIGKILL')
  for (const folder of Object.values(folders)) rmSync(folder, { recursive: true, force: true })
}
