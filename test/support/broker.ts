/**
 * A real broker for tests: own process, own port, gone after the test. Which one says the project of the test run
 * (vitest.config.ts): beanstalkd, or the embedded broker in a process of its own.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, connect as openSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

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

export interface TestBrokerOptions {
  /** a fixed one, for a broker that comes back where one was killed */
  readonly port?: number
  /** where its jobs outlive it */
  readonly dir?: string
  /** the largest job that it takes */
  readonly maxJobBytes?: number
}

/** On beanstalkd a second time, where it is installed. */
export const isOnBeanstalkd = process.env.TEST_BROKER === 'beanstalkd'

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

export function startBroker(options: TestBrokerOptions = {}): Promise<TestBroker> {
  return isOnBeanstalkd ? startBeanstalkd(options) : startEmbedded(options)
}

export function startBeanstalkd({ port, dir, maxJobBytes }: TestBrokerOptions = {}): Promise<TestBroker> {
  const args = [
    ...(dir === undefined ? [] : ['-b', dir]),
    ...(maxJobBytes === undefined ? [] : ['-z', `${maxJobBytes}`]),
  ]
  return startProcess('beanstalkd', port, (free) =>
    spawn('beanstalkd', ['-l', HOST, '-p', String(free), ...args], { stdio: 'ignore' }),
  )
}

async function startEmbedded({ port, dir, maxJobBytes }: TestBrokerOptions): Promise<TestBroker> {
  const folder = dir ?? mkdtempSync(join(tmpdir(), 'qworker-broker-'))
  const env = {
    PATH: process.env.PATH,
    RESULT_BASEDIR: folder,
    ...(maxJobBytes === undefined ? {} : { BROKER_MAX_JOB: String(maxJobBytes) }),
  }
  const program = join(import.meta.dirname, '..', '..', 'bin', 'qworker')
  return startProcess('qworker broker', port, (free) => {
    const args = [program, 'broker', '-p', String(free)]
    const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'ignore', 'inherit'] })
    if (dir === undefined) child.once('exit', () => rmSync(folder, { recursive: true, force: true }))
    return child
  })
}

async function startProcess(
  name: string,
  wanted: number | undefined,
  start: (port: number) => ChildProcess,
): Promise<TestBroker> {
  for (let attempt = 1; ; attempt++) {
    const port = wanted ?? (await freePort())
    const child = start(port)
    const exited = once(child, 'exit')
    if (await answers(child, port)) return makeBroker(child, exited, port)
    child.kill('SIGKILL')
    // Somebody took the port between the choice and the start: choose again.
    if (attempt >= ATTEMPTS) throw new Error(`${name} does not start`)
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
      if (value === undefined) throw new Error(`the broker's stats have no ${name}: ${text}`)
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
