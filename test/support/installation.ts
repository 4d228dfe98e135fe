/** A whole installation for one test: base directory, broker, algorithms, workers; all gone afterwards. */

import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { onTestFinished, type TestContext } from 'vitest'
import type { StatusDocument } from '../../src/job/result.ts'
import { startBroker, type TestBroker } from './broker.ts'

export const PROJECT = resolve(import.meta.dirname, '..', '..')

/** A line of the worker's JSON log. */
export interface LogLine {
  readonly event: string
  readonly uuid?: string
  readonly [field: string]: unknown
}

export interface RunningWorker {
  readonly child: ChildProcess
  readonly pid: number
  readonly events: LogLine[]
  /** `http://127.0.0.1:port/`, as the worker told it */
  readonly url: string
  /** all of stdout and stderr */
  readonly said: { stdout: string; stderr: string }
  readonly exited: Promise<[number | null, NodeJS.Signals | null]>
  waitFor(what: string, found: (line: LogLine) => boolean): Promise<LogLine>
  /** TERM, and the exit code */
  stop(): Promise<number | null>
}

export interface Installation {
  readonly base: string
  readonly results: string
  readonly algorithms: string
  readonly broker: TestBroker
  /** Writes `algorithms/<name>/run.sh` (POSIX sh) and its manifest. */
  addAlgorithm(name: string, script: string, manifest?: string): void
  startWorker(env?: Record<string, string>, args?: string[]): Promise<RunningWorker>
  /** Puts raw bytes as any client would; the ticket. */
  put(body: string | Buffer, options?: { tube?: string; ttr?: number; priority?: number }): Promise<string>
  /** Puts a bare two-key header; the uuid. */
  putJob(
    type: string,
    payload?: unknown,
    options?: { ttr?: number; tube?: string; header?: object; uuid?: string },
  ): Promise<string>
  status(uuid: string): StatusDocument | undefined
  result(uuid: string): (Record<string, unknown> & { result: unknown }) | undefined
  ticketState(ticket: string): Promise<string>
}

export async function install(env: Record<string, string> = {}): Promise<Installation> {
  const base = mkdtempSync(join(tmpdir(), 'qworker-test-'))
  const results = join(base, 'results')
  const algorithms = join(base, 'algorithms')
  mkdirSync(results)
  mkdirSync(algorithms)
  const broker = await startBroker()
  const workers: RunningWorker[] = []
  onTestFinished(async () => {
    for (const { child, exited } of workers) {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill('SIGCONT')
        child.kill('SIGTERM')
        child.kill('SIGTERM')
        const slow = setTimeout(() => child.kill('SIGKILL'), 10_000)
        await exited
        clearTimeout(slow)
      }
    }
    await broker.stop()
    const left = findRuns(results)
    for (const pid of left) tryKill(pid)
    rmSync(base, { recursive: true, force: true, maxRetries: 5 })
    if (left.length > 0) throw new Error(`processes left by a run: ${left.join(' ')}`)
  })
  const settings = {
    ...INSTALLATION_ENV,
    BEANSTALK_PORT: String(broker.port),
    RESULT_BASEDIR: results,
    ALGORITHM_DIRS: algorithms,
    ...env,
  }
  return {
    base,
    results,
    algorithms,
    broker,
    addAlgorithm: (name, script, manifest) => addAlgorithm(algorithms, name, script, manifest),
    async startWorker(more = {}, args = []) {
      const worker = await startWorker({ ...settings, ...more }, args)
      workers.push(worker)
      return worker
    },
    put: (body, options) => put(broker, body, options),
    async putJob(type, payload = {}, { header = {}, uuid = newUuid(), ...options } = {}) {
      await put(broker, JSON.stringify([{ uuid, type, ...header }, payload]), options)
      return uuid
    },
    status: (uuid) => readDocument(results, uuid, 'status.json'),
    result: (uuid) => readDocument(results, uuid, 'result.json'),
    async ticketState(ticket) {
      const answer = await broker.ask(`stats-job ${ticket}\r\n`, /NOT_FOUND\r\n$|\n\r\n$/)
      return /^state: (\w+)$/m.exec(answer)?.[1] ?? 'gone'
    },
  }
}

const INSTALLATION_ENV = {
  PATH: process.env.PATH ?? '',
  BEANSTALK_SERVER: '127.0.0.1',
  HTTP_PORT: '0',
  LOG_FORMAT: 'json',
  LOG_LEVEL: 'debug',
  CONCURRENCY: '2',
  RETRY_DELAY: '0',
}

export function newUuid(): string {
  return randomBytes(16).toString('hex')
}

function addAlgorithm(dir: string, name: string, script: string, manifest = ''): void {
  const folder = join(dir, name)
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'run.sh'), `#!/bin/sh\n${script}\n`)
  chmodSync(join(folder, 'run.sh'), 0o755)
  writeFileSync(
    join(folder, 'algorithm.yaml'),
    manifest.includes('command:') ? manifest : `command: [./run.sh]\n${manifest}`,
  )
}

async function startWorker(env: Record<string, string>, args: string[]): Promise<RunningWorker> {
  const child = spawn(join(PROJECT, 'bin', 'qworker'), args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  const closed = once(child, 'close') as typeof exited
  const said = { stdout: '', stderr: '' }
  const events: LogLine[] = []
  const listeners = new Set<() => void>()
  let partial = ''
  child.stderr.on('data', (chunk) => {
    said.stderr += chunk
  })
  child.stdout.on('data', (chunk) => {
    said.stdout += chunk
    const lines = (partial + chunk).split('\n')
    partial = lines.pop() ?? ''
    for (const line of lines) if (line.startsWith('{')) events.push(JSON.parse(line) as LogLine)
    for (const listener of listeners) listener()
  })
  const waitFor = async (what: string, found: (line: LogLine) => boolean) =>
    new Promise<LogLine>((resolve, reject) => {
      const look = () => {
        const line = events.find(found)
        if (line === undefined) return
        listeners.delete(look)
        resolve(line)
      }
      listeners.add(look)
      // Not at its exit: what it said last may still be on its way.
      void closed.then(([code, signal]) => {
        look()
        reject(new Error(`worker ended (${code ?? signal}) before ${what}\n${said.stderr}${said.stdout.slice(-4000)}`))
      }, reject)
      look()
    })
  const ready =
    env.LOG_FORMAT === 'json' ? await waitFor('it was ready', ({ event }) => event === 'worker_ready') : undefined
  return {
    child,
    pid: child.pid ?? 0,
    events,
    said,
    url: String(ready?.http ?? ''),
    exited,
    waitFor,
    async stop() {
      child.kill('SIGTERM')
      return (await exited)[0]
    },
  }
}

async function put(
  broker: TestBroker,
  body: string | Buffer,
  options: { tube?: string; ttr?: number; priority?: number } = {},
): Promise<string> {
  const { tube = 'default', ttr = 10, priority = 1337 } = options
  // One connection for `use` and `put`: latin1 keeps raw bytes as they are.
  const bytes = Buffer.from(body)
  const head = `use ${tube}\r\nput ${priority} 0 ${ttr} ${bytes.length}\r\n`
  const answer = await broker.ask(
    Buffer.concat([Buffer.from(head), bytes, Buffer.from('\r\n')]),
    /USING .*\r\n[A-Z]+.*\r\n$/s,
  )
  const ticket = /INSERTED (\d+)/.exec(answer)?.[1]
  if (ticket === undefined) throw new Error(`put: ${answer}`)
  return ticket
}

function readDocument<T>(results: string, uuid: string, name: string): T | undefined {
  const path = join(results, uuid.slice(0, 2), uuid, name)
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as T) : undefined
}

/** Processes of any run below this base directory: by the run's mark, which names no directory, and its HOME, which does. */
export function findRuns(results: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const environment = readFileSync(`/proc/${pid}/environ`, 'latin1')
        return environment.includes('QWORKER_RUN=') && environment.includes(`HOME=${results}/`)
      } catch {
        return false
      }
    })
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone since we looked
  }
}

/** Leaves a test out with a reason that every reporter prints. */
export function leaveOut(context: TestContext, reason: string): never {
  console.log(`not tested: ${reason}`)
  return context.skip(reason)
}

/** Waits until a condition holds. */
export async function until(what: string, holds: () => boolean | Promise<boolean>, seconds = 45): Promise<void> {
  const deadline = performance.now() + seconds * 1000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`waited ${seconds} s in vain for: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}
