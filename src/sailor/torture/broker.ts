/**
 * A broker of the torture's own, with its jobs on disk, that is killed and comes back on the same port: beanstalkd on a
 * binlog, and where that is not installed the embedded broker in a process of its own.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { openWire } from './wire.ts'

const START_MS = 15_000
const MOST_TRIES = 20

export interface Broker {
  readonly port: number
  /** Kills it with -9, and starts it again on its binlog after a while. */
  bounce(downMs: number): Promise<void>
  /** Stops it (SIGSTOP), and lets it go on after a while. */
  freeze(durationMs: number): Promise<void>
  /** It goes on, whatever was done to it. */
  calm(): void
  stop(): Promise<void>
}

export const BROKER_KINDS = ['beanstalkd', 'embedded'] as const
export type BrokerKind = (typeof BROKER_KINDS)[number]

export interface BrokerOptions {
  readonly kind: BrokerKind
  /** where its jobs are on disk */
  readonly dir: string
  readonly env: Readonly<Record<string, string>>
  /** compiled program */
  readonly qworker: string
}

export function hasBeanstalkd(env: Readonly<Record<string, string>>): boolean {
  return spawnSync('beanstalkd', ['-v'], { env, stdio: 'ignore' }).status === 0
}

/** @throws Error when there is no such broker, or it does not start */
export async function startBroker(options: BrokerOptions): Promise<Broker> {
  mkdirSync(options.dir, { recursive: true })
  const port = await freePort()
  let child = await start(port, options)
  let ended = false
  /** A kill while the one before is being mended waits for it. */
  let last: Promise<void> = Promise.resolve()
  const bounce = async (downMs: number) => {
    await kill(child)
    await sleep(downMs)
    // Meanwhile somebody may have been given the port for a short connection.
    for (let tries = 1; !ended; tries++) {
      try {
        child = await start(port, options)
        return
      } catch (error) {
        if (tries >= MOST_TRIES) throw error
        await sleep(1000)
      }
    }
  }
  return {
    port,
    bounce: (downMs) => {
      last = last.then(() => bounce(downMs))
      return last
    },
    freeze: async (durationMs) => {
      const frozen = child
      frozen.kill('SIGSTOP')
      await sleep(durationMs)
      frozen.kill('SIGCONT')
    },
    calm: () => void child.kill('SIGCONT'),
    stop: async () => {
      ended = true
      await last.catch(() => undefined)
      await kill(child)
    },
  }
}

function spawnBroker(port: number, { kind, dir, env, qworker }: BrokerOptions): ChildProcess {
  const rest = { stdio: 'ignore', detached: true } as const
  // What a killed process wrote stays in any case: to sync it would only cost time.
  if (kind === 'beanstalkd')
    return spawn('beanstalkd', ['-l', '127.0.0.1', '-p', String(port), '-b', dir, '-F'], { env, ...rest })
  const settings = { BEANSTALK_PORT: String(port), RESULT_BASEDIR: dir, BROKER_FSYNC: 'never' }
  return spawn(process.execPath, [qworker, 'broker'], { env: { ...env, ...settings }, ...rest })
}

async function start(port: number, options: BrokerOptions): Promise<ChildProcess> {
  const child = spawnBroker(port, options)
  let failure: Error | undefined
  child.once('error', (error: NodeJS.ErrnoException) => {
    failure =
      error.code === 'ENOENT' ? new Error('beanstalkd is not in PATH: install it (apt-get install beanstalkd)') : error
  })
  const deadline = performance.now() + START_MS
  while (
    performance.now() < deadline &&
    failure === undefined &&
    child.exitCode === null &&
    child.signalCode === null
  ) {
    if (await answers(port, child.pid)) return child
    await sleep(30)
  }
  await kill(child)
  throw failure ?? new Error(`the broker (${options.kind}) does not start on port ${port}`)
}

/** Its pid tells our broker from one that had the port already. */
async function answers(port: number, pid: number | undefined): Promise<boolean> {
  const wire = openWire('127.0.0.1', port)
  try {
    const { body } = await wire.ask('stats')
    return Number(/^pid: (\d+)$/m.exec(body.toString())?.[1]) === pid
  } catch {
    return false
  } finally {
    wire.close()
  }
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = once(child, 'exit')
  child.kill('SIGKILL')
  await gone
}

/** A port of loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
