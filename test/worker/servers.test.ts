import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { addRuns, eventsOf, healthOf, letGo, tell } from '../support/gated.ts'
import { type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'

vi.setConfig({ testTimeout: 120_000 })

const addressOf = ({ port }: { readonly port: number }) => `127.0.0.1:${port}`
const listOf = (...brokers: readonly TestBroker[]) => ({ BEANSTALK_SERVER: brokers.map(addressOf).join(',') })

/** A broker of its own for this test, on a journal that outlives it. */
async function startDurable(home: Installation, name: string, port?: number): Promise<TestBroker> {
  const dir = join(home.base, name)
  mkdirSync(dir, { recursive: true })
  const broker = await startBroker(port === undefined ? { dir } : { dir, port })
  onTestFinished(() => broker.stop())
  return broker
}

async function putOn(
  broker: TestBroker,
  type: string,
  options: { uuid?: string; priority?: number; delay?: number } = {},
): Promise<string> {
  const { uuid = newUuid(), priority = 10, delay = 0 } = options
  const body = `[{"uuid":"${uuid}","type":"${type}"},{}]`
  const answer = await broker.ask(`put ${priority} ${delay} 60 ${body.length}\r\n${body}\r\n`)
  expect(answer).toMatch(/^INSERTED/)
  return uuid
}

const putMany = (broker: TestBroker, type: string, count: number) =>
  Promise.all(Array.from({ length: count }, () => putOn(broker, type)))

async function untilEmpty(...brokers: readonly TestBroker[]): Promise<void> {
  for (const broker of brokers) {
    for (const state of ['ready', 'reserved', 'delayed', 'buried'])
      await until(
        `no job of ${broker.port} is ${state}`,
        async () => (await broker.stat(`current-jobs-${state}`)) === 0,
      )
  }
}

function untilComplete(home: Installation, uuids: readonly string[]): Promise<void> {
  return until('all are complete', () => uuids.every((uuid) => home.status(uuid)?.state === 'complete'))
}

const serversOf = async (worker: RunningWorker) =>
  ((await healthOf(worker)) as { servers?: { server: string; state: string }[] }).servers

/** All servers answer. */
function untilUp(worker: RunningWorker): Promise<void> {
  return until(
    'all servers are up',
    async () => (await serversOf(worker))?.every(({ state }) => state === 'up') === true,
  )
}

test.each([4, 1])('jobs of two servers are all done by %i slots, and a ticket tells its server', async (slots) => {
  const home = await install({ CONCURRENCY: String(slots) })
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const worker = await home.startWorker(listOf(home.broker, other))
  expect(worker.events.find(({ event }) => event === 'worker_ready')?.broker).toBe(
    `${addressOf(home.broker)}, ${addressOf(other)}`,
  )
  await untilUp(worker)
  const uuids = [...(await putMany(home.broker, 'ok', 15)), ...(await putMany(other, 'ok', 15))]
  await untilComplete(home, uuids)
  await untilEmpty(home.broker, other)
  const tickets = eventsOf(worker, 'job_settled').map(({ ticket }) => String(ticket))
  expect(new Set(tickets).size).toBe(30)
  for (const broker of [home.broker, other])
    expect(tickets.filter((ticket) => ticket.endsWith(`@${addressOf(broker)}`))).toHaveLength(15)
  expect(await serversOf(worker)).toMatchObject([
    { server: addressOf(home.broker), state: 'up', since: expect.any(String) },
    { server: addressOf(other), state: 'up' },
  ])
  expect(eventsOf(worker, 'broker_lost')).toEqual([])
  expect(await worker.stop()).toBe(0)
})

test('--once takes one job from whichever server has one', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const uuid = await putOn(other, 'ok')
  const worker = await home.startWorker(listOf(home.broker, other), ['--once'])
  expect(await worker.exited).toEqual([0, null])
  expect(home.result(uuid)).toMatchObject({ result: 2 })
})

test('slots wait spread over the servers, and none is idle while one server has more jobs than slots there', async () => {
  const home = await install({ CONCURRENCY: '4' })
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const worker = await home.startWorker(listOf(home.broker, other))
  await untilUp(worker)
  await until('two slots wait at each', async () => {
    const waiting = await Promise.all([home.broker, other].map((each) => each.stat('current-waiting')))
    return waiting.every((count) => count === 2)
  })
  await putMany(other, 'waits', 4)
  await until('all work on it', async () => (await healthOf(worker)).slots.busy === 4)
  letGo(home)
  await untilEmpty(other)
})

test('a server with many jobs keeps a single slot from no other server', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  await putMany(home.broker, 'ok', 60)
  const few = await putMany(other, 'ok', 5)
  const worker = await home.startWorker(listOf(home.broker, other))
  await untilComplete(home, few)
  expect(eventsOf(worker, 'job_settled').length).toBeLessThan(40)
  await untilEmpty(home.broker, other)
})

test('when one server is killed the others are served, it is told once, and its jobs are done when it is back', async () => {
  const home = await install({ CONCURRENCY: '4' })
  addRuns(home)
  const first = await startDurable(home, 'first')
  const worker = await home.startWorker(listOf(first, home.broker))
  await untilUp(worker)
  const late = await putOn(first, 'ok', { delay: 2 })
  await first.kill()
  const lost = await worker.waitFor('its loss', ({ event }) => event === 'broker_lost')
  expect(lost).toMatchObject({ server: addressOf(first), level: 'warn', error: expect.stringMatching(/lost|refused/) })
  // More than wait there: those of the other server work here meanwhile.
  await putMany(home.broker, 'waits', 4)
  await until('all slots work', async () => (await healthOf(worker)).slots.busy === 4)
  expect(await healthOf(worker)).toMatchObject({ status: 'connecting' })
  expect(await serversOf(worker)).toMatchObject([{ state: 'down' }, { state: 'up' }])
  letGo(home)
  await untilEmpty(home.broker)
  const again = await startDurable(home, 'first', first.port)
  await worker.waitFor('its return', ({ event }) => event === 'broker_back')
  await untilComplete(home, [late])
  expect(eventsOf(worker, 'broker_lost')).toHaveLength(1)
  expect(eventsOf(worker, 'broker_back')).toMatchObject([{ server: addressOf(first), seconds: expect.any(Number) }])
  await until('all is well', async () => (await healthOf(worker)).status === 'ok')
  await untilEmpty(again)
})

test('a run whose server dies keeps its ticket there, though another server has a job of the same number', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const first = await startDurable(home, 'first')
  const worker = await home.startWorker(listOf(first, home.broker))
  await untilUp(worker)
  const inHand = await putOn(first, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  // Ticket 1 of the other server: it waits.
  await putOn(home.broker, 'ok', { delay: 1000 })
  await first.kill()
  const broken = await worker.waitFor('the notice', ({ event }) => event === 'reservation_broken')
  expect(broken.ticket).toBe(`1@${addressOf(first)}`)
  const again = await startDurable(home, 'first', first.port)
  await worker.waitFor('the ticket', ({ event }) => event === 'reservation_regained')
  letGo(home)
  await untilComplete(home, [inHand])
  await untilEmpty(again)
  expect(home.status(inHand)?.attempts).toMatchObject([{ attempt: 1, outcome: 'success' }])
  expect(await home.ticketState('1')).toBe('delayed')
})

test('a uuid on two servers is one job: one attempt at a time, and what is complete is deleted, not run', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const worker = await home.startWorker(listOf(home.broker, other))
  const second = await home.startWorker(listOf(other, home.broker))
  await Promise.all([untilUp(worker), untilUp(second)])
  const uuid = newUuid()
  // The same number on both, too.
  await Promise.all([home.broker, other].map((each) => putOn(each, 'waits', { uuid })))
  await until('a run', () => eventsOf(worker, 'run_started').length + eventsOf(second, 'run_started').length === 1)
  await until('its twin was given back', async () => {
    const [a, b] = await Promise.all([
      home.broker.ask('stats-job 1\r\n', /\n\r\n/),
      other.ask('stats-job 1\r\n', /\n\r\n/),
    ])
    return /\nreleases: [1-9]/.test(`${a}${b}`)
  })
  letGo(home)
  await untilEmpty(home.broker, other)
  expect(readFileSync(join(home.algorithms, 'waits', 'runs'), 'utf8')).toBe('1\n')
  expect(home.status(uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1 }] })
  const twins = () => [worker, second].flatMap((each) => eventsOf(each, 'job_already_complete'))
  await until('its twin is told', () => twins().length === 1)
})

test('a worker starts while one of its servers is down, and says so; without any it does not start', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addRuns(home)
  const down = await startDurable(home, 'down')
  const uuid = await putOn(down, 'ok')
  await down.kill()
  const worker = await home.startWorker(listOf(down, home.broker))
  const lost = await worker.waitFor('the loss', ({ event }) => event === 'broker_lost')
  expect(lost).toMatchObject({ server: addressOf(down), error: expect.stringContaining('refused') })
  await untilComplete(home, [await putOn(home.broker, 'ok')])
  const again = await startDurable(home, 'down', down.port)
  await untilComplete(home, [uuid])
  await untilEmpty(again)
  const gone = await startBroker()
  await gone.stop()
  await expect(home.startWorker({ BEANSTALK_SERVER: `${addressOf(gone)} 127.0.0.1:1` })).rejects.toThrow(
    /worker ended \(69\)[\s\S]*127\.0\.0\.1:1 .*refused.*beanstalkd -l 127\.0\.0\.1 -p 1"/,
  )
})

test('a server that hangs holds up no job of the others for longer than one question', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addRuns(home)
  const hangs = await startBroker()
  onTestFinished(() => hangs.stop())
  const worker = await home.startWorker(listOf(hangs, home.broker))
  await untilUp(worker)
  await hangs.kill('SIGSTOP')
  await worker.waitFor('its loss', ({ event }) => event === 'broker_lost')
  const began = performance.now()
  await untilComplete(home, await putMany(home.broker, 'ok', 6))
  expect(performance.now() - began).toBeLessThan(8_000)
  await hangs.kill('SIGCONT')
  await worker.waitFor('its return', ({ event }) => event === 'broker_back')
  await untilComplete(home, [await putOn(hangs, 'ok')])
  await untilEmpty(hangs)
})

test('HUP changes the list: slots move over after the job in hand, which is settled where it is from', async () => {
  const home = await install()
  addRuns(home)
  const [second, third] = await Promise.all([startBroker(), startBroker()])
  for (const each of [second, third]) onTestFinished(() => each.stop())
  const file = join(home.base, 'rc')
  const write = (...brokers: readonly TestBroker[]) =>
    writeFileSync(file, JSON.stringify({ BEANSTALK_SERVER: brokers.map(addressOf), CONCURRENCY: 2 }))
  write(home.broker, second)
  const worker = await home.startWorker({ BEANSTALK_SERVER: '', CONCURRENCY: '' }, ['-c', file])
  await untilUp(worker)
  const inHand = await putOn(home.broker, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  write(third, second)
  expect((await tell(worker, 'SIGHUP', 'config_read')).changed).toEqual(['BEANSTALK_SERVER'])
  await until('the new list', async () => (await serversOf(worker))?.[0]?.server === addressOf(third))
  await untilComplete(home, [await putOn(third, 'ok'), await putOn(second, 'ok')])
  letGo(home)
  await untilComplete(home, [inHand])
  await untilEmpty(home.broker)
  // One alone is what one has always been.
  write(home.broker)
  await tell(worker, 'SIGHUP', 'config_read')
  const last = await putOn(home.broker, 'ok')
  const settled = await worker.waitFor('its end', ({ event, uuid }) => event === 'job_settled' && uuid === last)
  expect(settled.ticket).toMatch(/^\d+$/)
  expect(await serversOf(worker)).toBeUndefined()
  await until('nobody waits at the others', async () => (await third.stat('current-waiting')) === 0)
  writeFileSync(file, JSON.stringify({ BEANSTALK_SERVER: ['a', 'embedded'] }))
  expect((await tell(worker, 'SIGHUP', 'config_refused')).problems).toEqual([
    expect.stringMatching(/BEANSTALK_SERVER must be .*embedded is the broker of this machine and goes with no other/),
  ])
  expect(await worker.stop()).toBe(0)
})
