/** A real beanstalkd for tests: own process, own port, gone after the test. */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, connect as openSocket } from 'node:net'

export interface TestBroker {
  readonly host: string
  readonly port: number
  /** `beanstalk://host:port` */
  readonly url: string
  readonly pid: number
  /** Sends a signal; waits for the end of the process when the signal ends it. */
  kill(signal?: NodeJS.Signals): Promise<void>
  stop(): Promise<void>
  /** Sends raw protocol lines on a connection of its own and returns all that comes back until `until` matches. */
  ask(command: string | Uint8Array, until?: RegExp): Promise<string>
  /** A number from `stats`, for example `cmd-put`. */
  stat(name: string): Promise<number>
}

const HOST = '127.0.0.1'
const ATTEMPTS = 10
const START_MS = 10_000

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, HOST)
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  return typeof address === 'object' && address !== null ? address.port : 0
}

/** @param options.port a fixed port, for a broker that comes back where one was killed */
export async function startBroker(options: { args?: string[]; port?: number } = {}): Promise<TestBroker> {
  for (let attempt = 1; ; attempt++) {
    const port = options.port ?? (await freePort())
    const child = spawn('beanstalkd', ['-l', HOST, '-p', String(port), ...(options.args ?? [])], { stdio: 'ignore' })
    const exited = once(child, 'exit')
    if (await answers(child, port)) return makeBroker(child, exited, port)
    child.kill('SIGKILL')
    // Somebody took the port between the choice and the start: choose again.
    if (attempt >= ATTEMPTS) throw new Error(`beanstalkd ${(options.args ?? []).join(' ')} does not start`)
  }
}

function makeBroker(child: ChildProcess, exited: Promise<unknown>, port: number): TestBroker {
  const kill = async (signal: NodeJS.Signals = 'SIGKILL') => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill(signal)
    if (signal === 'SIGKILL' || signal === 'SIGTERM' || signal === 'SIGINT') await exited
  }
  const askBroker = (command: string | Uint8Array, until?: RegExp) => ask(port, command, until)
  return {
    host: HOST,
    port,
    url: `beanstalk://${HOST}:${port}`,
    pid: child.pid ?? 0,
    kill,
    // KILL also ends a broker that a test has stopped with SIGSTOP.
    stop: () => kill('SIGKILL'),
    ask: askBroker,
    async stat(name) {
      const text = await askBroker('stats\r\n', /\n\r\n$/)
      const value = new RegExp(`^${name}: (\\d+)$`, 'm').exec(text)?.[1]
      if (value === undefined) throw new Error(`beanstalkd's stats have no ${name}: ${text}`)
      return Number(value)
    },
  }
}

async function answers(child: ChildProcess, port: number): Promise<boolean> {
  const deadline = Date.now() + START_MS
  while (Date.now() < deadline) {
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return false
    try {
      // The pid in the answer proves that it is our broker and not one that had the port already.
      const pid = /\npid: (\d+)/.exec(await ask(port, 'stats\r\n', /\npid: \d+\n/))?.[1]
      return Number(pid) === child.pid
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
  return false
}

function ask(port: number, command: string | Uint8Array, until = /\r\n$/): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = openSocket(port, HOST, () => socket.write(command))
    let text = ''
    socket.setTimeout(5000, () =>
      socket.destroy(new Error(`no answer to ${JSON.stringify(String(command).slice(0, 200))}; so far: ${text}`)),
    )
    socket.on('error', reject)
    socket.on('close', () => reject(new Error(`connection closed after ${JSON.stringify(text)}`)))
    socket.on('data', (chunk) => {
      text += chunk
      if (!until.test(text)) return
      resolve(text)
      socket.destroy()
    })
  })
}
