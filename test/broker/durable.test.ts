import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  appendFileSync,
  closeSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, expect, it, onTestFinished, type TestContext } from 'vitest'
import { type Broker, type BrokerOptions, startBroker } from '../../src/broker/broker.ts'
import { Job } from '../../src/broker/job.ts'
import { Frame } from '../../src/broker/record.ts'
import { Tube } from '../../src/broker/tube.ts'
import { DEFAULTS } from '../../src/config.ts'
import { freePort } from '../support/broker.ts'
import { leaveOut, until } from '../support/installation.ts'
import { ask, open, put, startClock, stat, type Wire } from './wire.ts'

/** 200 for the long run. */
const KILLS = Number(process.env.BROKER_KILLS ?? 10)
const SERVE = join(import.meta.dirname, 'serve.js')

function makeFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'broker-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

async function start(journalDir: string, more: Partial<BrokerOptions> = {}): Promise<Broker> {
  const broker = await startBroker({
    host: '127.0.0.1',
    port: 0,
    journalDir,
    maxJobBytes: DEFAULTS.BROKER_MAX_JOB,
    fsync: 'interval',
    ...more,
  })
  onTestFinished(() => broker.close().catch(() => undefined))
  return broker
}

interface Served {
  readonly child: ChildProcess
  readonly port: number
  /** of the broker itself, which may run under another program */
  readonly pid: number
}

async function spawnBroker(command: readonly string[]): Promise<Served> {
  const child = spawn(command[0] as string, command.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = (await once(createInterface({ input: child.stdout as NodeJS.ReadableStream }), 'line')) as [string]
  const [, port, pid] = line.split(' ').map(Number) as [number, number, number]
  const served = { child, port, pid }
  onTestFinished(() => kill(served))
  return served
}

const serve = (folder: string, ...more: string[]) => spawnBroker([process.execPath, SERVE, folder, ...more])

async function kill({ child, pid }: Served): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  process.kill(pid, 'SIGKILL')
  await exited
}

/** Sends pipelined commands until the connection ends; hands out the replies in their order. */
async function pour(port: number, commands: () => string | undefined, onReply: (reply: string) => void): Promise<void> {
  // The kill may come before it.
  const wire = await open(port).catch(() => undefined)
  if (wire === undefined) return
  let inFlight = 0
  for (;;) {
    for (; inFlight < 64; inFlight++) {
      const command = commands()
      if (command === undefined) break
      wire.send(command)
    }
    if (inFlight === 0) return
    const reply = await wire.read().catch(() => 'closed')
    if (reply === 'closed') return
    inFlight--
    onReply(reply)
  }
}

/** What must be and what may be in the broker, by the answers that came before it was killed. */
class Ledger {
  readonly #certain = new Map<string, string>()
  readonly #possible = new Set<string>()
  #bodies = 0

  nextPut(): { body: string; bytes: string } {
    const body = `${++this.#bodies}-${'x'.repeat(this.#bodies % 300)}`
    this.#possible.add(body)
    return { body, bytes: put(body) }
  }

  inserted(body: string, id: string): void {
    this.#possible.delete(body)
    this.#certain.set(body, id)
  }

  /** A delete that is not answered yet may have happened. */
  nextDelete(): { body: string; bytes: string } | undefined {
    const [entry] = this.#certain
    if (entry === undefined) return undefined
    this.#certain.delete(entry[0])
    this.#possible.add(entry[0])
    return { body: entry[0], bytes: `delete ${entry[1]}\r\n` }
  }

  deleted(body: string): void {
    this.#possible.delete(body)
  }

  /** Compares with what is there, all of which it reserves; then that is what is certain. */
  async check(port: number): Promise<void> {
    const wire = await open(port)
    const found = new Map<string, string>()
    for (let isMore = true; isMore; ) {
      wire.send('reserve-with-timeout 0\r\n'.repeat(100))
      for (let n = 0; n < 100; n++) {
        const match = /^RESERVED (\d+) \d+\r\n([\s\S]*)\r\n$/.exec(await wire.read())
        if (match === null) {
          isMore = false
          continue
        }
        const [, id = '', body = ''] = match
        if (found.has(body)) throw new Error(`${body} is there twice`)
        if (!this.#certain.has(body) && !this.#possible.has(body)) throw new Error(`${body} is there, but was deleted`)
        found.set(body, id)
      }
    }
    expect([...this.#certain.keys()].filter((body) => !found.has(body))).toEqual([])
    this.#certain.clear()
    this.#possible.clear()
    for (const [body, id] of found) this.#certain.set(body, id)
    await wire.close()
  }
}

describe('a broker that is killed', () => {
  it(
    'has every job that it answered INSERTED, none twice, and none that it answered DELETED',
    async () => {
      const folder = makeFolder()
      const ledger = new Ledger()
      for (let round = 0; round < KILLS; round++) {
        // Small segments, so that kills meet rotation and compaction, too.
        const served = await serve(folder, ['interval', 'each', 'never'][round % 3] as string, '200000')
        const { port } = served
        await ledger.check(port)
        const puts: string[] = []
        const deletes: string[] = []
        const pouring = [
          pour(
            port,
            () => {
              const { body, bytes } = ledger.nextPut()
              puts.push(body)
              return bytes
            },
            (reply) => ledger.inserted(puts.shift() as string, /^INSERTED (\d+)/.exec(reply)?.[1] as string),
          ),
          pour(
            port,
            () => {
              const next = ledger.nextDelete()
              if (next !== undefined) deletes.push(next.body)
              return next?.bytes
            },
            (reply) => {
              expect(reply).toBe('DELETED\r\n')
              ledger.deleted(deletes.shift() as string)
            },
          ),
        ]
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 120))
        await kill(served)
        await Promise.all(pouring)
      }
      const { port } = await serve(folder, 'interval')
      await ledger.check(port)
    },
    KILLS * 3000 + 20_000,
  )

  it('keeps state, priority, delay, order and counters of its jobs', async () => {
    const folder = makeFolder()
    const served = await serve(folder, 'interval')
    const { port } = served
    const wire = await open(port)
    await ask(wire, 'use t\r\n')
    await ask(wire, 'watch t\r\n')
    for (const how of ['5 0 1', '6 0 60', '7 0 60', '8 0 60', '9 1000 60']) await ask(wire, put('x', how))
    await ask(wire, 'reserve\r\n')
    // The first one's TTR is over; the connection must do something for beanstalkd, not for us.
    const other = await open(port)
    await ask(other, 'watch t\r\n')
    expect(await ask(other, 'reserve-job 2\r\n')).toMatch(/^RESERVED 2/)
    expect(await ask(other, 'reserve-job 3\r\n')).toMatch(/^RESERVED 3/)
    expect(await ask(other, 'bury 3 77\r\n')).toBe('BURIED\r\n')
    expect(await ask(other, 'bury 2 66\r\n')).toBe('BURIED\r\n')
    expect(await ask(other, 'reserve-job 4\r\n')).toMatch(/^RESERVED 4/)
    expect(await ask(other, 'release 4 3 500\r\n')).toBe('RELEASED\r\n')
    expect(await ask(other, 'kick-job 5\r\n')).toBe('KICKED\r\n')
    expect(await ask(other, 'reserve\r\n')).toMatch(/^RESERVED 5/)
    expect(await ask(other, 'reserve-with-timeout 5\r\n')).toMatch(/^RESERVED 1/)
    await kill(served)

    const again = await open((await serve(folder, 'interval')).port)
    await ask(again, 'use t\r\n')
    const jobs: string[] = []
    for (const id of [1, 2, 3, 4, 5]) {
      const reply = await ask(again, `stats-job ${id}\r\n`)
      const state = /^state: (\w+)$/m.exec(reply)?.[1]
      const counters = ['pri', 'delay', 'reserves', 'timeouts', 'releases', 'buries', 'kicks'].map((key) =>
        stat(reply, key),
      )
      jobs.push([state, ...counters].join(' '))
    }
    expect(jobs).toEqual([
      'ready 5 0 2 1 0 0 0',
      'buried 66 0 1 0 0 1 0',
      'buried 77 0 1 0 0 1 0',
      'delayed 3 500 1 0 1 0 0',
      'ready 9 1000 1 0 0 0 1',
    ])
    expect(stat(await ask(again, 'stats-job 4\r\n'), 'time-left')).toBeGreaterThan(490)
    expect(await ask(again, 'peek-buried\r\n')).toMatch(/^FOUND 3/)
    expect(await ask(again, put('y'))).toBe('INSERTED 6\r\n')
  })

  it('refuses jobs before the memory of its process is used up, and takes them again when others are gone', async () => {
    const node = [process.execPath, '--max-old-space-size=96']
    const { child, port } = await spawnBroker([...node, SERVE, makeFolder(), 'never'])
    const wire = await open(port)
    let jobs = 0
    while (jobs < 5000 && (await ask(wire, put('x'.repeat(60_000)))).startsWith('INSERTED')) jobs++
    expect(await ask(wire, put('y'.repeat(60_000)))).toBe('OUT_OF_MEMORY\r\n')
    expect(jobs).toBeGreaterThan(300)
    for (let id = 1; id <= jobs; id++) await ask(wire, `delete ${id}\r\n`)
    for (let n = 0; n < jobs; n++) expect(await ask(wire, put('z'.repeat(60_000)))).toMatch(/^INSERTED/)
    expect(child.exitCode).toBeNull()
  })

  it('gives its folder free, which no second one may use while it lives', async () => {
    const folder = makeFolder()
    const served = await serve(folder, 'interval')
    await expect(start(folder)).rejects.toMatchObject({ code: 'locked', message: expect.stringContaining(folder) })
    await kill(served)
    await (await start(folder)).close()
    await (await start(folder)).close()
  })
})

/** A small one, gone after the test. */
function mountDisk(context: TestContext, size: string): string {
  const folder = makeFolder()
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'none', folder], { encoding: 'utf8' })
  if (mounted.status !== 0) leaveOut(context, `mount: ${mounted.error?.message ?? mounted.stderr.trim()}`)
  onTestFinished(() => void spawnSync('umount', ['-l', folder]))
  return folder
}

/** Fills the disk, ballast and all, while commands come. @param last done just before @returns what makes room */
async function holdAnswers(
  folder: string,
  broker: Broker,
  wire: Wire,
  last: () => Promise<void> = async () => undefined,
): Promise<() => void> {
  const jobs = 700
  const fill = (name: string) => spawnSync('dd', ['if=/dev/zero', `of=${join(folder, name)}`, 'bs=4k'])
  const readAll = async () => {
    for (let n = 0; n < jobs; n++) await wire.read()
  }
  const deletes: string[] = []
  for (let n = 0; n < jobs; n++) deletes.push(`delete ${/\d+/.exec(await ask(wire, put('x')))?.[0]}\r\n`)
  fill('one')
  wire.send('reserve\r\n'.repeat(jobs))
  await readAll()
  fill('two')
  await last()
  wire.send(deletes.join(''))
  await until('nothing moves any more', async () => {
    const before = broker.stats().reserved
    await new Promise((resolve) => setTimeout(resolve, 300))
    return before < jobs && broker.stats().reserved === before
  })
  return () => {
    for (const name of ['one', 'two']) rmSync(join(folder, name))
  }
}

const segments = (folder: string) => readdirSync(folder).filter((name) => /^journal\.\d+$/.test(name))

describe('a journal', () => {
  it('gives no number twice, even when all jobs are gone', async () => {
    const folder = makeFolder()
    for (const id of [1, 2, 3]) {
      const broker = await start(folder)
      const wire = await open(broker.port)
      expect(await ask(wire, put('x'))).toBe(`INSERTED ${id}\r\n`)
      expect(await ask(wire, `delete ${id}\r\n`)).toBe('DELETED\r\n')
      await broker.close()
    }
  })

  it('that is long is read in many turns of the process, while clients wait for their answers', async () => {
    const folder = makeFolder()
    const frame = new Frame()
    frame.addHead(1)
    const chunks = [Buffer.from(frame.seal())]
    const tube = new Tube('t')
    for (let id = 1; id <= 200_000; id++) {
      if (id % 1000 === 1) frame.clear()
      frame.add('put', new Job(id, tube, 1, 0, 60, Date.now()))
      if (id % 1000 === 0) chunks.push(Buffer.from(frame.seal()))
    }
    writeFileSync(join(folder, 'journal.00000001'), Buffer.concat(chunks))
    const port = await freePort()
    const clock = startClock()
    let isStarted = false
    const starting = start(folder, { port }).finally(() => {
      isStarted = true
    })
    let wire: Wire | undefined
    await until('it listens', async () => {
      wire = await open(port).catch(() => undefined)
      return wire !== undefined
    })
    expect(isStarted).toBe(false)
    wire?.send('peek 200000\r\n')
    expect((await starting).recovery).toEqual({ jobs: 200_000, tornBytes: 0 })
    expect(clock.longestShare()).toBeLessThan(0.5)
    expect(await wire?.read()).toMatch(/^FOUND 200000 /)
  })

  it('whose end is torn is read up to there, goes on, and keeps what it could not read', async () => {
    const folder = makeFolder()
    const broker = await start(folder)
    const wire = await open(broker.port)
    for (const body of ['a', 'b', 'c']) await ask(wire, put(body))
    await broker.close()
    const [name = ''] = segments(folder)
    const whole = readFileSync(join(folder, name))
    for (let cut = 1; cut <= 72; cut += 5) {
      for (const left of segments(folder)) rmSync(join(folder, left))
      writeFileSync(join(folder, name), whole.subarray(0, whole.length - cut))
      const again = await start(folder)
      expect(again.recovery).toMatchObject({ jobs: 2 })
      const client = await open(again.port)
      expect(await ask(client, put('d'))).toMatch(/^INSERTED \d+\r\n$/)
      await again.close()
      const third = await start(folder)
      expect(third.recovery).toEqual({ jobs: 3, tornBytes: 0 })
      await third.close()
    }
  })

  it('with rubbish, a damaged frame or zeros at its end is read up to there', async () => {
    for (const harm of ['rubbish', '\0'.repeat(5000), 'flip'] as const) {
      const folder = makeFolder()
      const broker = await start(folder)
      const wire = await open(broker.port)
      for (const body of ['a', 'b', 'c']) await ask(wire, put(body))
      await broker.close()
      const path = join(folder, segments(folder)[0] as string)
      const { size } = statSync(path)
      if (harm === 'flip') {
        const bytes = readFileSync(path)
        bytes[size - 1] = (bytes[size - 1] as number) ^ 1
        truncateSync(path)
        appendFileSync(path, bytes)
      } else {
        appendFileSync(path, harm)
      }
      const again = await start(folder)
      expect(again.recovery?.jobs).toBe(harm === 'flip' ? 2 : 3)
      expect(again.recovery?.tornBytes).toBeGreaterThan(0)
      expect(readdirSync(folder)).toContain(`${segments(folder)[0]}.torn`)
      await again.close()
    }
  })

  it('does not grow with what is gone, and keeps the few that stay', async () => {
    const folder = makeFolder()
    const segmentBytes = 20_000
    const broker = await start(folder, { segmentBytes })
    const wire = await open(broker.port)
    await ask(wire, 'use stay\r\n')
    for (let n = 1; n <= 20; n++) await ask(wire, put(`stays ${n}`))
    for (const id of [9, 3, 7]) {
      await ask(wire, `reserve-job ${id}\r\n`)
      await ask(wire, `bury ${id} 1\r\n`)
    }
    await ask(wire, 'use go\r\n')
    for (let n = 0; n < 1500; n++) {
      const id = /\d+/.exec(await ask(wire, put('x'.repeat(200))))?.[0]
      await ask(wire, `delete ${id}\r\n`)
    }
    expect(stat(await ask(wire, 'stats\r\n'), 'binlog-records-migrated')).toBeGreaterThan(20)
    // They are removed behind the next sync.
    await until('few segments are left', () => segments(folder).length < 8)
    expect(Number(segments(folder)[0]?.split('.')[1])).toBeGreaterThan(5)
    await broker.close()
    const again = await start(folder, { segmentBytes })
    expect(again.recovery).toEqual({ jobs: 20, tornBytes: 0 })
    const client = await open(again.port)
    await ask(client, 'use stay\r\n')
    expect(await ask(client, 'peek-buried\r\n')).toMatch(/^FOUND 9 /)
    await ask(client, 'kick 1\r\n')
    expect(await ask(client, 'peek-buried\r\n')).toMatch(/^FOUND 3 /)
    expect(await ask(client, 'peek 20\r\n')).toContain('stays 20')
    for (let n = 1; n <= 20; n++) expect(await ask(client, `delete ${n}\r\n`)).toBe('DELETED\r\n')
  })

  it('serves on when a segment that nobody needs any more cannot be removed, or is gone already', async () => {
    const folder = makeFolder()
    const broker = await start(folder, { segmentBytes: 20_000 })
    const wire = await open(broker.port)
    const [first, second] = [join(folder, 'journal.00000001'), join(folder, 'journal.00000002')]
    const pour = async () => {
      for (let n = 0; n < 300; n++) {
        const id = /\d+/.exec(await ask(wire, put('x'.repeat(200))))?.[0]
        await ask(wire, `delete ${id}\r\n`)
      }
    }
    for (let n = 0; n < 3; n++) await ask(wire, put('x'.repeat(20_000)))
    for (const path of [first, second]) rmSync(path)
    // What not even root can unlink.
    mkdirSync(second)
    for (const id of [1, 2, 3]) await ask(wire, `delete ${id}\r\n`)
    await pour()
    const oldest = async () => stat(await ask(wire, 'stats\r\n'), 'binlog-oldest-index')
    await until('the first one is forgotten', async () => (await oldest()) === 2)
    await pour()
    expect(await oldest()).toBe(2)
    rmdirSync(second)
    await ask(wire, put('y'))
    await until('all are forgotten', async () => (await oldest()) > 2)
  })

  it('on a full disk refuses puts, keeps its word for all others, and takes puts again when there is room', async (context) => {
    const folder = mountDisk(context, '8m')
    const broker = await start(folder, { segmentBytes: 500_000 })
    const wire = await open(broker.port)
    let puts = 0
    while (puts < 5000 && (await ask(wire, put('x'.repeat(5000)))).startsWith('INSERTED')) puts++
    expect(puts).toBeGreaterThan(500)
    expect(puts).toBeLessThan(2000)
    expect(await ask(wire, put('y'))).toBe('OUT_OF_MEMORY\r\n')
    expect(await ask(wire, 'reserve\r\n')).toMatch(/^RESERVED 1 /)
    for (let id = 1; id <= puts; id++) expect(await ask(wire, `delete ${id}\r\n`)).toBe('DELETED\r\n')
    const until = Date.now() + 10_000
    while ((await ask(wire, put('y'))) === 'OUT_OF_MEMORY\r\n' && Date.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    expect(await ask(wire, put('z'))).toMatch(/^INSERTED/)
    await broker.close()
    expect((await start(folder)).recovery).toEqual({ jobs: 2, tornBytes: 0 })
  })

  it('refuses a job that is larger than the room on the disk, and goes on with all else', async (context) => {
    const folder = mountDisk(context, '36m')
    const broker = await start(folder, { maxJobBytes: 1 << 26 })
    const wire = await open(broker.port)
    expect(await ask(wire, put('x'.repeat(20_000_000)))).toBe('INSERTED 1\r\n')
    expect(await ask(wire, put('y'.repeat(20_000_000)))).toBe('OUT_OF_MEMORY\r\n')
    expect(await ask(wire, put('z'))).toMatch(/^INSERTED/)
    expect(await ask(wire, 'delete 1\r\n')).toBe('DELETED\r\n')
    await until('there is room', async () => /^INSERTED/.test(await ask(wire, put('y'.repeat(20_000_000)))))
    await broker.close()
    expect((await start(folder)).recovery).toEqual({ jobs: 2, tornBytes: 0 })
  })

  it('keeps its word, too, when the disk has no room to write a large job anew', async (context) => {
    const folder = mountDisk(context, '44m')
    const broker = await start(folder, { maxJobBytes: 1 << 26, segmentBytes: 2_000_000 })
    const wire = await open(broker.port)
    await ask(wire, put('x'.repeat(10_000_000)))
    for (let n = 0; n < 700; n++) {
      const id = /^INSERTED (\d+)/.exec(await ask(wire, put('y'.repeat(60_000))))?.[1]
      if (id === undefined) break
      expect(await ask(wire, `delete ${id}\r\n`)).toBe('DELETED\r\n')
    }
    expect(await ask(wire, 'delete 1\r\n')).toBe('DELETED\r\n')
    await until('there is room', async () => /^INSERTED/.test(await ask(wire, put('z'))))
    await broker.close()
    expect((await start(folder)).recovery).toEqual({ jobs: 1, tornBytes: 0 })
  })

  it('that the disk does not take at all holds its answers back, and does then what became due meanwhile', async (context) => {
    const folder = mountDisk(context, '8m')
    const broker = await start(folder)
    const [wire, other] = [await open(broker.port), await open(broker.port)]
    await ask(other, 'watch empty\r\n')
    await ask(other, 'ignore default\r\n')
    const free = await holdAnswers(folder, broker, wire, async () => {
      other.send('reserve-with-timeout 3\r\n')
      await until('it waits', () => broker.stats().waiting === 1)
    })
    const asked = Date.now()
    await until('its time is over', () => Date.now() > asked + 3000)
    expect(other.take()).toBeUndefined()
    free()
    expect(await other.read()).toBe('TIMED_OUT\r\n')
    expect(await wire.read()).toBe('DELETED\r\n')
  })

  it('that is closed while the disk does not take it writes to no descriptor any more', async (context) => {
    const folder = mountDisk(context, '8m')
    const broker = await start(folder)
    const free = await holdAnswers(folder, broker, await open(broker.port))
    await broker.close()
    const others = makeFolder()
    const opened = ['a', 'b', 'c'].map((name) => openSync(join(others, name), 'w'))
    free()
    await new Promise((resolve) => setTimeout(resolve, 500))
    expect(opened.map((descriptor) => fstatSync(descriptor).size)).toEqual([0, 0, 0])
    for (const descriptor of opened) closeSync(descriptor)
  })

  it('with fsync `each` is synced before INSERTED goes out', async (context) => {
    if (spawnSync('strace', ['-V']).status !== 0) leaveOut(context, 'strace is not installed here')
    const folder = makeFolder()
    const trace = join(makeFolder(), 'trace')
    const strace = ['strace', '-f', '-s', '200', '-o', trace, '-e', 'trace=fdatasync,write,pwrite64', process.execPath]
    const served = await spawnBroker([...strace, SERVE, folder, 'each'])
    const wire = await open(served.port)
    expect(await ask(wire, put('the body'))).toBe('INSERTED 1\r\n')
    await kill(served)
    const calls = readFileSync(trace, 'utf8')
    const written = calls.indexOf('the body')
    const synced = calls.indexOf('fdatasync', written)
    expect(written).toBeGreaterThan(0)
    expect(synced).toBeGreaterThan(written)
    expect(calls.indexOf('INSERTED')).toBeGreaterThan(synced)
  })
})
