import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { type Broker, type BrokerOptions, startBroker } from '../../src/broker/broker.ts'
import { DEFAULTS } from '../../src/config.ts'
import { openQueue } from '../../src/queue/queue.ts'
import { until } from '../support/installation.ts'
import { ask, open, put, startClock, stat } from './wire.ts'

async function start(more: Partial<BrokerOptions> = {}): Promise<Broker> {
  const broker = await startBroker({
    host: '127.0.0.1',
    port: 0,
    maxJobBytes: DEFAULTS.BROKER_MAX_JOB,
    fsync: 'interval',
    ...more,
  })
  onTestFinished(() => broker.close())
  return broker
}

it('takes a job back when its TTR is over, though its holder does nothing', async () => {
  const broker = await start()
  const [holder, other] = [await open(broker.port), await open(broker.port)]
  await ask(holder, put('x', '0 0 1'))
  expect(await ask(holder, 'reserve\r\n')).toMatch(/^RESERVED 1 /)
  expect(await ask(other, 'reserve-with-timeout 4\r\n')).toMatch(/^RESERVED 1 /)
  expect(broker.stats()).toMatchObject({ reserved: 1, ready: 0, totalJobs: 1, clients: 2 })
})

it('takes no more jobs when it drains, and goes on with those that it has', async () => {
  const broker = await start()
  const wire = await open(broker.port)
  await ask(wire, put('x'))
  broker.drain()
  expect(await ask(wire, put('y'))).toBe('DRAINING\r\n')
  expect(await ask(wire, put('y'.repeat(70000)))).toBe('JOB_TOO_BIG\r\n')
  expect(await ask(wire, 'stats\r\n')).toContain('\ndraining: true\n')
  expect(await ask(wire, 'reserve\r\n')).toMatch(/^RESERVED 1 /)
  expect(await ask(wire, 'delete 1\r\n')).toBe('DELETED\r\n')
})

it('reads no further while its replies are not taken, serves others, and loses none', async () => {
  const broker = await start()
  const [lazy, other] = [await open(broker.port), await open(broker.port)]
  await ask(lazy, put('b'.repeat(60000)))
  lazy.pause()
  lazy.send('peek 1\r\n'.repeat(20_000))
  for (let n = 0; n < 200; n++) expect(await ask(other, 'list-tube-used\r\n')).toBe('USING default\r\n')
  // 1.2 GB of replies were asked for.
  expect(process.memoryUsage().rss).toBeLessThan(700e6)
  lazy.resume()
  for (let n = 0; n < 1000; n++) expect((await lazy.read()).length).toBe(60017)
})

it('leaves the process time for other things, whatever one client asks for', async () => {
  const broker = await start()
  const wire = await open(broker.port)
  const [tubes, reserves] = [2000, 3000]
  wire.send(Array.from({ length: tubes }, (_, n) => `watch t${n}\r\n`).join(''))
  for (let n = 0; n < tubes; n++) await wire.read()
  const clock = startClock()
  // Each goes through all tubes: together they take long.
  wire.send('reserve-with-timeout 0\r\n'.repeat(reserves))
  for (let n = 0; n < reserves; n++) expect(await wire.read()).toBe('TIMED_OUT\r\n')
  expect(clock.longestShare()).toBeLessThan(0.3)
})

it('says what is wrong when it cannot listen, and leaves the folder to others', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'broker-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const { port } = await start()
  const refused = start({ port, journalDir: folder })
  await expect(refused).rejects.toMatchObject({
    code: 'address',
    message: expect.stringContaining(`127.0.0.1:${port}`),
  })
  await (await start({ journalDir: folder })).close()
  expect(readdirSync(folder)).not.toContain('lock')
  const before = readdirSync(folder)
  await expect(start({ port, journalDir: folder })).rejects.toMatchObject({ code: 'address' })
  expect(readdirSync(folder)).toEqual(before)
})

it('says what is wrong with a folder that cannot be used', async () => {
  const path = mkdtempSync(join(tmpdir(), 'broker-'))
  onTestFinished(() => rmSync(path, { recursive: true }))
  writeFileSync(join(path, 'file'), '')
  await expect(start({ journalDir: join(path, 'file') })).rejects.toMatchObject({ code: 'journal' })
  await expect(start({ journalDir: join(path, 'file', 'below') })).rejects.toMatchObject({ code: 'journal' })
})

it('answers what is done, ends all connections and closes at once', async () => {
  const broker = await start()
  const [wire, waiting] = [await open(broker.port), await open(broker.port)]
  await ask(wire, 'list-tube-used\r\n')
  waiting.send('reserve\r\n')
  await broker.close()
  expect(await waiting.read()).toBe('closed')
  expect(await wire.read()).toBe('closed')
})

it('closes at once though clients that hung up do not take their last replies', async () => {
  const broker = await start({ maxJobBytes: 262_144 })
  const wire = await open(broker.port)
  await ask(wire, put('x'.repeat(200_000)))
  const lazy = await Promise.all(Array.from({ length: 40 }, () => open(broker.port)))
  for (const [replies, each] of lazy.entries()) {
    each.pause()
    each.send('peek 1\r\n'.repeat(replies))
    each.end()
  }
  // As much is sent as the system takes for them; of some the broker has replies left, though it has done all they asked.
  await until('nothing moves any more', async () => {
    const peeks = async () => stat(await ask(wire, 'stats\r\n'), 'cmd-peek')
    const before = await peeks()
    for (let turn = 0; turn < 100; turn++) await ask(wire, 'list-tube-used\r\n')
    return (await peeks()) === before
  })
  expect(broker.stats().clients).toBeLessThan(lazy.length)
  await broker.close()
  for (const each of lazy) each.resume()
})

it('serves our own queue as beanstalkd does', async () => {
  const { port } = await start()
  const queue = await openQueue(`beanstalk://127.0.0.1:${port}`)
  onTestFinished(() => queue.close())
  expect(queue.maxBodyBytes).toBe(65535)
  await queue.watch(['t'])
  const ticket = await queue.put(Buffer.from([0, 255, 13, 10]), {
    tube: 't',
    priority: 1,
    delaySeconds: 0,
    ttrSeconds: 9,
  })
  const job = await queue.reserve(1)
  expect(job).toMatchObject({ ticket, tube: 't', priority: 1, ttrSeconds: 9, reserves: 1 })
  expect([...(job?.body ?? [])]).toEqual([0, 255, 13, 10])
  await job?.bury(2)
  expect(await queue.ticketState(ticket)).toBe('buried')
  await (await queue.reserveTicket(ticket))?.delete()
  expect(await queue.ticketState(ticket)).toBe('gone')
})

it('hangs up on more clients than it is to have, and takes others when some have left', async () => {
  const broker = await start({ maxConnections: 2 })
  const [first] = [await open(broker.port), await open(broker.port)]
  expect(await ask(await open(broker.port), 'stats\r\n')).toBe('closed')
  await first.close()
  const later = async () => ask(await open(broker.port), 'list-tubes\r\n')
  let reply = await later()
  while (reply === 'closed') reply = await later()
  expect(reply).toMatch(/^OK /)
})
