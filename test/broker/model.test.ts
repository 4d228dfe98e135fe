import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Broker, startBroker } from '../../src/broker/broker.ts'
import { DEFAULTS } from '../../src/config.ts'
import { startBeanstalkd, type TestBroker } from '../support/broker.ts'
import { Wire, withoutClock } from './wire.ts'

/** 20000 for the long run; one sequence takes about 5 ms. */
const RUNS = Number(process.env.BROKER_RUNS ?? 300)
const CLIENTS = 3
/** A sequence that took longer met a TTR of one second. */
const TOO_SLOW_MS = 600
const hasBeanstalkd = spawnSync('beanstalkd', ['-v']).status === 0

/** One step: a client's bytes, or what happens to its connection. `#2` is the number of the sequence's third job. */
type Step = { client: number; send: string } | { client: number; event: 'close' | 'hang up' } | { event: 'look' }

const HUGE = 'put too much\r\n'
const HUGE_PUT = `put 0 0 1 65536\r\n${'z'.repeat(65536)}\r\n`

const tube = fc.constantFrom('default', 'a', 'b', 'c')
const priority = fc.constantFrom(0, 1, 1023, 1024, 4294967295)
const delay = fc.constantFrom(0, 0, 0, 100, 200)
const ttr = fc.constantFrom(0, 1, 100, 100, 4294967295)
const nth = fc.nat({ max: 7 })
const client = fc.nat({ max: CLIENTS - 1 })
const body = fc.constantFrom('', 'x', 'a\r\nb', '\0\xff', 'y'.repeat(300))

const text = (value: fc.Arbitrary<string>) => value.map((line) => `${line}\r\n`)
const ofJob = (verb: string, tail: fc.Arbitrary<string> = fc.constant('')) =>
  fc.tuple(nth, tail).map(([n, rest]) => `${verb} #${n}${rest}\r\n`)
const put = fc.tuple(priority, delay, ttr, body).map(([p, d, t, b]) => `put ${p} ${d} ${t} ${b.length}\r\n${b}\r\n`)
const ODD_PUTS = ['put 0 0 1 3\r\nabcdefg\r\n', 'put 0 0 1 1\r\nxyz\r\n']

const oddity = fc.constantFrom(
  ...ODD_PUTS,
  HUGE,
  'put 0 0 1\r\n',
  'put 1 2 3 4x\r\n',
  'put -1 0 1 1\r\n',
  'put 4294967296 0 1 1\r\n',
  'put 0 0 1 1\r\nxyz\r\n',
  'delete\r\n',
  'delete 1x\r\n',
  'delete  99999999999999999999\r\n',
  'peek 0\r\n',
  'release 1 2\r\n',
  'kick\r\n',
  'kick x\r\n',
  'kick 1x\r\n',
  'kick -1\r\n',
  'reserve-with-timeout 0x\r\n',
  'reserve-with-timeout x\r\n',
  'reserve-with-timeout 99999999999999999999\r\n',
  'reserve 1\r\n',
  'use -a\r\n',
  'use a b\r\n',
  `use ${'n'.repeat(200)}\r\n`,
  `use ${'n'.repeat(201)}\r\n`,
  `watch ${'n'.repeat(300)}\r\n`,
  'pause-tube a\r\n',
  'pause-tube -a 1\r\n',
  'pause-tube none 1\r\n',
  'stats-tube none\r\n',
  'stats-tube\r\n',
  'list-tubesx\r\n',
  'hello\r\n',
  '\r\n',
  'a\0b\r\n',
)

const reserving = fc.constantFrom(
  'reserve',
  'reserve-with-timeout 0',
  'reserve-with-timeout 0',
  'reserve-with-timeout 100',
)
const asking = fc.constantFrom(
  'peek-ready',
  'peek-delayed',
  'peek-buried',
  'list-tubes',
  'list-tube-used',
  'list-tubes-watched',
  'stats',
)
const number = fc.tuple(priority, delay).map(([p, d]) => ` ${p} ${d}`)
const bytes = fc.oneof(
  { weight: 8, arbitrary: put },
  { weight: 6, arbitrary: text(reserving) },
  { weight: 2, arbitrary: text(tube.map((name) => `use ${name}`)) },
  { weight: 2, arbitrary: text(tube.map((name) => `watch ${name}`)) },
  { weight: 2, arbitrary: text(tube.map((name) => `ignore ${name}`)) },
  { weight: 2, arbitrary: text(asking) },
  { weight: 1, arbitrary: text(tube.map((name) => `stats-tube ${name}`)) },
  {
    weight: 1,
    arbitrary: text(
      fc.tuple(fc.constantFrom('a', 'b'), fc.constantFrom(0, 100)).map(([a, s]) => `pause-tube ${a} ${s}`),
    ),
  },
  { weight: 2, arbitrary: text(fc.nat({ max: 3 }).map((count) => `kick ${count}`)) },
  { weight: 1, arbitrary: ofJob('kick-job') },
  { weight: 2, arbitrary: ofJob('delete') },
  { weight: 3, arbitrary: ofJob('release', number) },
  {
    weight: 3,
    arbitrary: ofJob(
      'bury',
      priority.map((p) => ` ${p}`),
    ),
  },
  { weight: 1, arbitrary: ofJob('touch') },
  { weight: 1, arbitrary: ofJob('peek') },
  { weight: 2, arbitrary: ofJob('reserve-job') },
  { weight: 2, arbitrary: ofJob('stats-job') },
  { weight: 1, arbitrary: oddity },
)
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 20, arbitrary: fc.record({ client, send: bytes }) },
  { weight: 1, arbitrary: fc.record({ client, event: fc.constantFrom('close' as const, 'hang up' as const) }) },
  { weight: 1, arbitrary: fc.constant({ event: 'look' as const }) },
)

/** Both brokers, asked the same things in the same order. */
class Pair {
  readonly #ports: readonly number[]
  readonly #controls: readonly Wire[]
  #clients: (readonly Wire[] | undefined)[] = []
  readonly #waiting = new Set<number>()

  constructor(ports: readonly number[], controls: readonly Wire[]) {
    this.#ports = ports
    this.#controls = controls
  }

  isWaiting(n: number): boolean {
    return this.#waiting.has(n)
  }

  async #client(n: number): Promise<readonly Wire[]> {
    const open = this.#clients[n] ?? (await Promise.all(this.#ports.map((port) => Wire.open(port))))
    this.#clients[n] = open
    return open
  }

  async ask(text: string, wires: readonly Wire[] = this.#controls): Promise<string> {
    for (const wire of wires) wire.send(text)
    return this.#read(wires, text)
  }

  async #read(wires: readonly Wire[], question = ''): Promise<string> {
    const [theirs, ours] = await Promise.all(wires.map((wire) => wire.read()))
    expect(withoutClock(ours ?? ''), question.slice(0, 80)).toBe(withoutClock(theirs ?? ''))
    return ours ?? ''
  }

  /** A client's command with all its replies; a reserve may have none yet. */
  async command(n: number, text: string): Promise<void> {
    const wires = await this.#client(n)
    if (/^reserve(-with-timeout 100)?\r\n/.test(text)) {
      for (const wire of wires) wire.send(text)
      this.#waiting.add(n)
    } else {
      await this.ask(text, wires)
      // What is left of an odd put is a command of its own.
      if (ODD_PUTS.includes(text)) expect(await this.#read(wires)).toBe('UNKNOWN_COMMAND\r\n')
    }
    await this.settle()
  }

  /** Hands out what those who wait have got by now. */
  async settle(): Promise<void> {
    if (this.#waiting.size === 0) return
    await this.ask('list-tube-used\r\n')
    await this.ask('list-tube-used\r\n')
    await new Promise(setImmediate)
    for (const n of [...this.#waiting]) {
      const [theirs, ours] = (this.#clients[n] ?? []).map((wire) => wire.take())
      expect(ours, `what client ${n} waited for`).toBe(theirs)
      if (ours !== undefined) this.#waiting.delete(n)
    }
  }

  async close(n: number): Promise<void> {
    const wires = this.#clients[n]
    if (wires === undefined) return
    this.#clients[n] = undefined
    this.#waiting.delete(n)
    await Promise.all(wires.map((wire) => wire.close()))
    await this.#settleConnections()
    await this.settle()
  }

  async hangUp(n: number): Promise<void> {
    const wires = this.#clients[n]
    if (wires === undefined) return
    for (const wire of wires) wire.end()
    this.#clients[n] = undefined
    this.#waiting.delete(n)
    for (let reply = ''; reply !== 'closed'; ) {
      const [theirs, ours] = await Promise.all(wires.map((wire) => wire.read()))
      expect(ours, `what client ${n} got after it hung up`).toBe(theirs)
      reply = ours ?? ''
    }
    await this.#settleConnections()
    await this.settle()
  }

  /** Both are asked equally often, so that their counters stay the same. */
  async #settleConnections(): Promise<void> {
    const expected = 1 + this.#clients.filter((wires) => wires !== undefined).length
    for (;;) {
      for (const wire of this.#controls) wire.send('stats\r\n')
      const replies = await Promise.all(this.#controls.map((wire) => wire.read()))
      if (replies.every((reply) => reply.includes(`\ncurrent-connections: ${expected}\n`))) return
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
  }

  async look(jobs: readonly number[]): Promise<void> {
    await this.ask('stats\r\n')
    await this.ask('list-tubes\r\n')
    for (const name of ['default', 'a', 'b']) await this.ask(`stats-tube ${name}\r\n`)
    for (const job of jobs) await this.ask(`stats-job ${job}\r\n`)
  }

  /** Ends the clients and deletes what is left; returns the number that the next job will get. */
  async clear(base: number): Promise<number> {
    for (let n = 0; n < CLIENTS; n++) {
      await Promise.all((this.#clients[n] ?? []).map((wire) => wire.close()))
    }
    this.#clients = []
    this.#waiting.clear()
    await this.#settleConnections()
    const next = Number(/\d+/.exec(await this.ask('put 0 0 100 0\r\n\r\n'))?.[0])
    for (let job = base; job <= next; job++) await this.ask(`delete ${job}\r\n`)
    return next + 1
  }
}

describe.runIf(hasBeanstalkd)('the embedded broker beside beanstalkd', () => {
  let beanstalkd: TestBroker
  let broker: Broker
  let pair: Pair
  let controls: Wire[]
  let base = 1
  const folder = mkdtempSync(join(tmpdir(), 'broker-model-'))

  async function setUp(): Promise<void> {
    beanstalkd = await startBeanstalkd()
    broker = await startBroker({
      host: '127.0.0.1',
      port: 0,
      journalDir: folder,
      maxJobBytes: DEFAULTS.BROKER_MAX_JOB,
      fsync: 'never',
    })
    const ports = [beanstalkd.port, broker.port]
    // The start of beanstalkd was waited for by connections of its own: the counts begin after them.
    const stats = await beanstalkd.ask('stats\r\n', /\n\r\n$/)
    const connections = Number(/total-connections: (\d+)/.exec(stats)?.[1])
    for (let n = 0; n < connections; n++) {
      const wire = await Wire.open(broker.port)
      wire.send('stats\r\n')
      await wire.read()
      await wire.close()
    }
    controls = await Promise.all(ports.map((port) => Wire.open(port)))
    pair = new Pair(ports, controls)
    base = 1
  }

  async function tearDown(): Promise<void> {
    for (const wire of controls) await wire.close()
    await broker.close()
    await beanstalkd.stop()
    rmSync(folder, { recursive: true })
  }

  beforeAll(setUp)
  afterAll(tearDown)

  async function play(steps: readonly Step[]): Promise<void> {
    for (const step of steps) {
      if ('send' in step) {
        const bytes = step.send.replace(/#(\d)/g, (_, n: string) => String(base + Number(n))).replace(HUGE, HUGE_PUT)
        if (!pair.isWaiting(step.client)) await pair.command(step.client, bytes)
      } else if (step.event === 'look') await pair.look([base, base + 1, base + 2])
      else if (step.event === 'close') await pair.close(step.client)
      else await pair.hangUp(step.client)
    }
    await pair.look(Array.from({ length: 8 }, (_, n) => base + n))
  }

  it(
    'gives the same replies and statistics to any sequence of commands',
    async () => {
      const property = fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
        const startedAt = performance.now()
        let failure: unknown
        try {
          await play(steps)
        } catch (error) {
          failure = error
        }
        const isSlow = performance.now() - startedAt > TOO_SLOW_MS
        if (failure === undefined) {
          base = await pair.clear(base)
          return
        }
        if (!isSlow) throw failure
        unclear++
        await tearDown()
        await setUp()
      })
      let unclear = 0
      await fc.assert(property, { numRuns: RUNS, endOnFailure: true })
      expect(unclear, 'sequences that differ, but took so long that a TTR may have ended').toBeLessThan(2 + RUNS / 100)
    },
    RUNS * 100 + 60_000,
  )
})
