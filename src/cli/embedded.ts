/**
 * The broker of workers with BEANSTALK_SERVER embedded. Of those with one RESULT_BASEDIR one at a time is the broker: the
 * lock of the journal and the port see to that. When it ends, however it does, another takes journal and port over, and
 * all connect again.
 */

import { mkdir } from 'node:fs/promises'
import { connect as openSocket, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Broker, type BrokerStats, startBroker } from '../broker/broker.ts'
import { BrokerError } from '../broker/broker-error.ts'
import type { Config } from '../config.ts'
import { openQueue, QueueError } from '../queue/queue.ts'
import type { Bus } from '../report/events.ts'
import { brokerAddress, EMBEDDED_HOST, serversOf } from './broker.ts'
import { EXIT } from './exit.ts'

export interface EmbeddedBroker {
  /** Undefined while another process is the broker. */
  stats(): BrokerStats | undefined
  /** Takes no more jobs from producers, if the broker is here. */
  drain(): void
  close(): Promise<void>
}

/** Another worker may be reading a large journal, and does not answer yet. */
const PATIENCE_MS = 30_000
/** Workers that lost their broker come one after the other. */
const DISPERSE_MS = 200
const AGAIN_MS = 1_000

export function journalFolder({ RESULT_BASEDIR }: Config): string {
  return join(RESULT_BASEDIR, '.state', 'broker')
}

/**
 * @param maxConnections clients at a time; undefined: as many as come
 * @param config RESULT_BASEDIR must be there: what a disk that is not mounted leaves is not written into
 * @throws BrokerError
 */
export async function startOwnBroker(config: Config, maxConnections: number | undefined): Promise<Broker> {
  const journalDir = journalFolder(config)
  for (const folder of [dirname(journalDir), journalDir])
    await mkdir(folder, { mode: 0o700 }).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'EEXIST') return
      throw new BrokerError('journal', `no folder for the broker's journal can be made (${cause.message})`, cause)
    })
  return startBroker({
    host: EMBEDDED_HOST,
    port: config.BEANSTALK_PORT,
    journalDir,
    maxJobBytes: config.BROKER_MAX_JOB,
    fsync: config.BROKER_FSYNC,
    maxConnections,
  })
}

export function exitCodeOf(error: BrokerError): number {
  return error.code === 'journal' ? EXIT.cantCreate : EXIT.unavailable
}

/** What is wrong and the next step. */
export function describeBrokerError(config: Config, error: BrokerError): string {
  switch (error.code) {
    case 'address':
      return `${error.message}: set BEANSTALK_PORT to a free port`
    case 'locked':
      return `${error.message}; if it is that of another worker, give both the same BEANSTALK_PORT (this is ${config.BEANSTALK_PORT})`
    case 'journal':
      return `${error.message}: RESULT_BASEDIR (${config.RESULT_BASEDIR}) must be there, be this user's to write, and have room`
  }
}

/**
 * Starts the broker, or finds that of another process at its address, and then stands by.
 * @throws BrokerError when neither is to be had
 */
export async function openEmbeddedBroker(
  config: Config,
  bus: Bus,
  maxConnections: number | undefined,
): Promise<EmbeddedBroker> {
  const keeper = new Keeper(config, bus, maxConnections)
  await keeper.open()
  return keeper
}

class Keeper implements EmbeddedBroker {
  readonly #config: Config
  readonly #bus: Bus
  readonly #maxConnections: number | undefined
  #own: Broker | undefined
  #isClosed = false
  #watched: Socket | undefined
  #standby = Promise.resolve()
  readonly #closing = new AbortController()

  constructor(config: Config, bus: Bus, maxConnections: number | undefined) {
    this.#config = config
    this.#bus = bus
    this.#maxConnections = maxConnections
  }

  async open(): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS
    while (!(await this.#take(performance.now() > deadline))) await sleep(DISPERSE_MS)
    if (this.#own !== undefined) return
    this.#bus.emit({ event: 'broker_found', broker: brokerAddress(this.#config) })
    this.#standby = this.#standBy()
  }

  stats(): BrokerStats | undefined {
    return this.#own?.stats()
  }

  drain(): void {
    this.#own?.drain()
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#closing.abort()
    this.#watched?.destroy()
    await this.#standby
    await this.#own?.close()
  }

  /** @returns whether there is a broker now, here or elsewhere. @throws BrokerError when there can be none */
  async #take(isLast: boolean): Promise<boolean> {
    if (await this.#answers()) return true
    try {
      this.#own = await startOwnBroker(this.#config, this.#maxConnections)
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code === 'journal') throw error
      if (await this.#answers()) return true
      // Who has the journal may be reading it yet. What has the port and is no broker will not become one.
      if (isLast || error.code === 'address') throw error
      return false
    }
    const { recovery } = this.#own
    this.#bus.emit({
      event: 'broker_started',
      broker: brokerAddress(this.#config),
      jobs: recovery?.jobs ?? 0,
      tornBytes: recovery?.tornBytes ?? 0,
    })
    return true
  }

  async #answers(): Promise<boolean> {
    try {
      const queue = await openQueue(serversOf(this.#config)[0].url)
      queue.close()
      return true
    } catch (error) {
      if (error instanceof QueueError) return false
      throw error
    }
  }

  /** Until it is our turn. */
  async #standBy(): Promise<void> {
    let told: string | undefined
    while (!this.#isClosed && this.#own === undefined) {
      await this.#watchOther()
      await this.#pause(Math.random() * DISPERSE_MS)
      if (this.#isClosed) return
      try {
        await this.#take(true)
        told = undefined
      } catch (error) {
        const problem = error instanceof BrokerError ? describeBrokerError(this.#config, error) : String(error)
        if (problem !== told) this.#bus.emit({ event: 'worker_problem', problem })
        told = problem
        await this.#pause(AGAIN_MS)
      }
    }
  }

  /** Resolves when the connection to the other broker ends. */
  async #watchOther(): Promise<void> {
    const socket = openSocket(this.#config.BEANSTALK_PORT, EMBEDDED_HOST)
    this.#watched = socket
    socket.on('error', () => undefined).resume()
    await new Promise((resolve) => socket.once('close', resolve))
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#closing.signal }).catch(() => undefined)
  }
}
