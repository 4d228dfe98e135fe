import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startBroker } from '../../src/broker/broker.ts'
import { DEFAULTS } from '../../src/config.ts'
import { startBeanstalkd } from '../support/broker.ts'
import { CASES, type Step } from './conformance.ts'
import { Wire, withoutClock } from './wire.ts'

interface Running {
  readonly port: number
  stop(): Promise<void>
}

const SUBJECTS: [name: string, isThere: boolean, start: () => Promise<Running>][] = [
  ['beanstalkd', spawnSync('beanstalkd', ['-v']).status === 0, () => startBeanstalkd()],
  ['the embedded broker', true, startOurs],
  ['the embedded broker that syncs each answer', true, () => startOurs('each')],
]

async function startOurs(fsync: 'each' | 'interval' = 'interval'): Promise<Running> {
  const folder = mkdtempSync(join(tmpdir(), 'broker-'))
  const broker = await startBroker({
    host: '127.0.0.1',
    port: 0,
    journalDir: folder,
    maxJobBytes: DEFAULTS.BROKER_MAX_JOB,
    fsync,
  })
  const stop = async () => {
    await broker.close()
    rmSync(folder, { recursive: true })
  }
  return { port: broker.port, stop }
}

/** One case, with clients, names of tubes and numbers of jobs of its own. */
class Play {
  readonly #port: number
  readonly #name: string
  readonly #clients = new Map<string, Wire>()
  readonly #jobs: string[] = []

  constructor(port: number, name: string) {
    this.#port = port
    this.#name = name
  }

  async #client(letter: string): Promise<Wire> {
    const client = this.#clients.get(letter) ?? (await Wire.open(this.#port))
    this.#clients.set(letter, client)
    return client
  }

  #fill(text: string): string {
    return text
      .replace(/\bTUBE/g, this.#name)
      .replace(/(?<![\w\\])#(\d)(?!\d)/g, (all, n: string) => this.#jobs[Number(n) - 1] ?? all)
  }

  async step(step: Step): Promise<void> {
    if ('waitMs' in step) await new Promise((resolve) => setTimeout(resolve, step.waitMs))
    else if ('close' in step) await (await this.#client(step.close)).close()
    else if ('hangUp' in step) (await this.#client(step.hangUp)).end()
    else if ('nothingFor' in step) await this.#expectNothing(await this.#client(step.nothingFor))
    else await this.#converse(await this.#client(step[0]), step[1], step.slice(2) as string[])
  }

  async #converse(client: Wire, bytes: string | readonly string[], replies: string[]): Promise<void> {
    for (const piece of typeof bytes === 'string' ? [bytes] : bytes) {
      if (piece !== '') client.send(this.#fill(piece))
      if (typeof bytes !== 'string') await new Promise((resolve) => setTimeout(resolve, 5))
    }
    for (const reply of replies) {
      const came = withoutClock(await client.read())
      const number = /^INSERTED (\d+)/.exec(came)?.[1]
      if (number !== undefined) this.#jobs.push(number)
      expect(came).toBe(this.#fill(reply))
    }
  }

  async #expectNothing(client: Wire): Promise<void> {
    const control = await this.#client('control')
    control.send('list-tube-used\r\n')
    await control.read()
    await new Promise(setImmediate)
    expect(client.take()).toBeUndefined()
  }

  async end(): Promise<void> {
    for (const client of this.#clients.values()) await client.close()
  }
}

describe.each(SUBJECTS)('%s', (_, isThere, start) => {
  if (!isThere) {
    it.skip('beanstalkd is not installed here: `apt-get install beanstalkd`')
    return
  }
  let subject: Running
  beforeAll(async () => {
    subject = await start()
  })
  afterAll(() => subject.stop())

  it.concurrent.each(CASES.map(({ title, steps }, n) => [title, steps, n] as const))('%s', async (_, steps, n) => {
    const play = new Play(subject.port, `t${n}-`)
    try {
      for (const step of steps) await play.step(step)
    } finally {
      await play.end()
    }
  })
})
