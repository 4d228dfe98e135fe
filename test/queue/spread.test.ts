import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openQueue, type PutOptions, QueueError } from '../../src/queue/queue.ts'
import { makeServers, rankServers } from '../../src/queue/servers.ts'
import { makeSpread, openNamed } from '../../src/queue/spread.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'

const PUT: PutOptions = { tube: 'default', priority: 1, delaySeconds: 0, ttrSeconds: 60 }
const newKey = () => randomBytes(16).toString('hex')

async function startTwo(options: { dir?: string; maxJobBytes?: number } = {}): Promise<[TestBroker, TestBroker]> {
  const brokers = await Promise.all([startBroker(options), startBroker()])
  for (const broker of brokers) onTestFinished(() => broker.stop())
  return brokers
}

function spreadOver(...brokers: readonly { readonly port: number }[]) {
  const told: string[] = []
  const servers = makeServers(
    brokers.map(({ port }) => `127.0.0.1:${port}`),
    1,
  )
  const spread = makeSpread({ servers, tell: (message) => told.push(message) })
  onTestFinished(() => spread.close())
  const firstOf = (key: string) => rankServers(key, servers)[0]?.name
  /** a key whose job goes to this broker first */
  const keyFor = ({ port }: { readonly port: number }) => {
    for (;;) {
      const key = newKey()
      if (firstOf(key) === `127.0.0.1:${port}`) return key
    }
  }
  return { spread, told, keyFor, firstOf }
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error: unknown = await promise.catch((reason: unknown) => reason)
  expect(error).toBeInstanceOf(QueueError)
  return `${(error as QueueError).code}: ${(error as QueueError).message}`
}

const jobsOn = (broker: TestBroker) => broker.stat('current-jobs-ready')

test('each job goes to the server that its key names; its ticket tells which that is, and its state is asked there', async () => {
  const [a, b] = await startTwo()
  const { spread, told, firstOf } = spreadOver(a, b)
  await spread.open()
  expect(spread.maxBodyBytes).toBe(65_535)
  for (let i = 0; i < 40; i++) {
    const key = newKey()
    const ticket = await spread.put(Buffer.from(key), { ...PUT, key })
    expect(ticket).toMatch(new RegExp(`^\\d+@${firstOf(key)}$`))
    expect(await spread.ticketState(ticket)).toBe('ready')
  }
  expect(await jobsOn(a)).toBeGreaterThan(5)
  expect((await jobsOn(a)) + (await jobsOn(b))).toBe(40)
  expect(await codeOf(spread.ticketState('1@elsewhere:1'))).toMatch(/^protocol: .*is of none of the servers/)
  expect(told).toEqual([])
})

test('for one job only its server is connected to, and the next one where that is down, which is told', async () => {
  const [a, b] = await startTwo()
  const before = await b.stat('total-connections')
  const first = spreadOver(a, b)
  const key = first.keyFor(a)
  await first.spread.open(key)
  expect(await first.spread.put(Buffer.from('x'), { ...PUT, key })).toBe(`1@127.0.0.1:${a.port}`)
  expect((await b.stat('total-connections')) - before).toBe(1)
  expect(first.told).toEqual([])
  await a.kill()
  const second = spreadOver(a, b)
  await second.spread.open(key)
  expect(await second.spread.put(Buffer.from('x'), { ...PUT, key })).toBe(`1@127.0.0.1:${b.port}`)
  expect(second.told).toEqual([
    `cannot connect to beanstalkd at 127.0.0.1:${a.port} (connection refused): its jobs go to the other servers`,
  ])
  await b.kill()
  const none = spreadOver(a, b)
  expect(await codeOf(none.spread.open(key))).toMatch(
    /^unreachable: none of 2 servers can be reached: .*refused.*; .*refused/,
  )
  expect(none.told).toEqual([])
})

test('a server that drains is passed over, and told of once', async () => {
  const [a, b] = await startTwo()
  const { spread, told, keyFor } = spreadOver(a, b)
  await spread.open()
  await a.kill('SIGUSR1')
  await expect.poll(() => a.ask('put 0 0 1 1\r\nx\r\n')).toBe('DRAINING\r\n')
  const key = keyFor(a)
  const tickets = await Promise.all(Array.from({ length: 50 }, () => spread.put(Buffer.from('x'), { ...PUT, key })))
  expect(tickets).toEqual(Array.from({ length: 50 }, (_, i) => `${i + 1}@127.0.0.1:${b.port}`))
  expect(told).toEqual([expect.stringMatching(/drains.*: its jobs go to the other servers$/)])
  await b.kill('SIGUSR1')
  await expect.poll(() => b.ask('put 0 0 1 1\r\nx\r\n')).toBe('DRAINING\r\n')
  expect(await codeOf(spread.put(Buffer.from('x'), { ...PUT, key }))).toMatch(
    /^refused: none of 2 servers takes the job: .*drains.*; .*drains/,
  )
})

test('jobs under way to a server that is lost go to the next one, in the order of the calls, and may be on both', async () => {
  const [a, b] = await startTwo()
  const { spread, told, keyFor } = spreadOver(a, b)
  await spread.open()
  // It is sent the jobs and does not answer.
  await a.kill('SIGSTOP')
  const [ofA, ofB] = [keyFor(a), keyFor(b)]
  const settled: number[] = []
  const puts = Array.from({ length: 20 }, (_, i) =>
    spread.put(Buffer.from(`job ${i}`), { ...PUT, key: i % 2 === 0 ? ofA : ofB }).then((ticket) => {
      settled.push(i)
      return ticket
    }),
  )
  await expect.poll(() => jobsOn(b)).toBe(10)
  expect(settled).toEqual([])
  await a.kill()
  expect((await Promise.all(puts)).every((ticket) => ticket.endsWith(`@127.0.0.1:${b.port}`))).toBe(true)
  expect(settled).toEqual(Array.from({ length: 20 }, (_, i) => i))
  expect(await jobsOn(b)).toBe(20)
  expect(told).toEqual([
    expect.stringMatching(
      /lost.*: its jobs go to the other servers, also 10 jobs that it had not answered, and may be on both$/,
    ),
  ])
})

test('a server that comes back gets its jobs again, though nobody waited for it', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-spread-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  const [a, b] = await startTwo({ dir })
  const { spread, told, keyFor } = spreadOver(a, b)
  await spread.open()
  const key = keyFor(a)
  expect(await spread.put(Buffer.from('x'), { ...PUT, key })).toBe(`1@127.0.0.1:${a.port}`)
  await a.kill()
  expect(await spread.put(Buffer.from('x'), { ...PUT, key })).toMatch(`@127.0.0.1:${b.port}`)
  const again = await startBroker({ dir, port: a.port })
  onTestFinished(() => again.stop())
  await expect
    .poll(() => spread.put(Buffer.from('x'), { ...PUT, key }), { timeout: 20_000 })
    .toMatch(`@127.0.0.1:${a.port}`)
  expect(told).toHaveLength(2)
  expect(told[0]).toMatch(/its jobs go to the other servers/)
  expect(told[1]).toBe(`127.0.0.1:${a.port} takes jobs again`)
  expect(await spread.ticketState(`1@127.0.0.1:${a.port}`)).toBe('ready')
})

test('when all are lost, what was sent to one is in doubt, and what was sent to none is not', async () => {
  const [a, b] = await startTwo()
  const { spread, keyFor } = spreadOver(a, b)
  await spread.open()
  await b.kill()
  await a.kill('SIGSTOP')
  const sent = codeOf(spread.put(Buffer.from('x'), { ...PUT, key: keyFor(a) }))
  await a.kill()
  expect(await sent).toMatch(/^connection_lost: /)
  expect(await codeOf(spread.put(Buffer.from('x'), { ...PUT, key: keyFor(a) }))).toMatch(
    /^refused: none of 2 servers takes the job: .*refused.*; .*refused/,
  )
  expect(spread.maxBodyBytes).toBe(65_535)
})

test('a job that is too large for one server goes to one that takes it', async () => {
  const [a, b] = await startTwo({ maxJobBytes: 5_000 })
  const { spread, keyFor } = spreadOver(a, b)
  await spread.open()
  expect(spread.maxBodyBytes).toBe(65_535)
  expect(await spread.put(Buffer.alloc(6_000, 'x'), { ...PUT, key: keyFor(a) })).toBe(`1@127.0.0.1:${b.port}`)
})

test('a queue that names its tickets gives and takes them with its server, and none of another', async () => {
  const [a, b] = await startTwo()
  const [server, other] = makeServers([`127.0.0.1:${a.port}`, `127.0.0.1:${b.port}`], 1)
  if (server === undefined || other === undefined) throw new Error('two servers')
  const queue = await openNamed(server)
  onTestFinished(() => queue.close())
  const ticket = await queue.put(Buffer.from('x'), PUT)
  expect(ticket).toBe(`1@${server.name}`)
  const held = await queue.reserve(0)
  expect(held).toMatchObject({ ticket, tube: 'default' })
  await held?.touch()
  await held?.release({ priority: 1, delaySeconds: 0 })
  expect(await queue.ticketState(ticket)).toBe('ready')
  expect((await queue.reserveTicket(ticket))?.ticket).toBe(ticket)
  expect(await codeOf(queue.reserveTicket(`1@${other.name}`))).toMatch(/^protocol: ticket .* is none of /)
  const plain = await openQueue(server.url)
  onTestFinished(() => plain.close())
  expect(await plain.ticketState('1')).toBe('reserved')
})
