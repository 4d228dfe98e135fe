import { randomBytes } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { makeServers, rankServers } from '../../src/queue/servers.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { addRuns } from '../support/gated.ts'
import { install, until } from '../support/installation.ts'
import { runQproducer, startQproducer } from './run-qproducer.ts'

const addressOf = ({ port }: TestBroker) => `127.0.0.1:${port}`
const listOf = (...brokers: readonly TestBroker[]) => brokers.map(addressOf).join(', ')

async function startTwo(): Promise<[TestBroker, TestBroker]> {
  const brokers = await Promise.all([startBroker(), startBroker()])
  for (const broker of brokers) onTestFinished(() => broker.stop())
  return brokers
}

/** A uuid whose job goes to this one of the brokers first. */
function uuidFor(broker: TestBroker, ...brokers: readonly TestBroker[]): string {
  const servers = makeServers(brokers.map(addressOf), 1)
  for (;;) {
    const uuid = randomBytes(16).toString('hex')
    if (rankServers(uuid, servers)[0]?.name === addressOf(broker)) return uuid
  }
}

const jobsOn = (broker: TestBroker) => broker.stat('current-jobs-ready')
const runWith = (brokers: readonly TestBroker[], args: readonly string[], stdin?: string) =>
  runQproducer(undefined, args, { env: { BEANSTALK_SERVER: listOf(...brokers) }, ...(stdin ? { stdin } : {}) })

test('a job goes to the server that its uuid names, whatever the order of the list, and its ticket tells which', async () => {
  const [a, b] = await startTwo()
  for (const broker of [a, b]) {
    const uuid = uuidFor(broker, a, b)
    const ticket = `1@${addressOf(broker)}`
    const run = await runWith([a, b], ['-a', 'sleep', '--uuid', uuid, '-v'])
    expect(run).toMatchObject({ code: 0, stderr: '' })
    expect(run.stdout).toContain(`\nticket: ${ticket}\n`)
    expect(run.stdout).toContain(`\nStarting producer, connecting to ${listOf(a, b)}\n`)
    const again = await runWith([b, a], ['-a', 'sleep', '--uuid', uuid, '--json'])
    expect(JSON.parse(again.stdout)).toMatchObject({ uuid, ticket: ticket.replace('1@', '2@') })
  }
})

test('a server that is down, or that drains, is told of once, and the job goes to the other; without any the exit is 69', async () => {
  const [a, b] = await startTwo()
  const uuid = uuidFor(a, a, b)
  await a.kill('SIGUSR1')
  await expect.poll(() => a.ask('put 0 0 1 1\r\nx\r\n')).toBe('DRAINING\r\n')
  const draining = await runWith([a, b], ['-a', 'sleep', '--uuid', uuid, '--json'])
  expect(draining.code).toBe(0)
  expect(JSON.parse(draining.stdout).ticket).toBe(`1@${addressOf(b)}`)
  expect(draining.stderr).toMatch(/^qproducer: .*drains.*: its jobs go to the other servers\n$/)
  await a.kill()
  const down = await runWith([a, b], ['-a', 'sleep', '--uuid', uuid, '--json'])
  expect(down.code).toBe(0)
  expect(down.stderr).toMatch(/^qproducer: cannot connect .*refused\): its jobs go to the other servers\n$/)
  await b.kill()
  expect(await runWith([a, b], ['-a', 'sleep'])).toEqual({
    code: 69,
    stdout: '',
    stderr: expect.stringMatching(
      /^qproducer: none of 2 servers can be reached: .*: start one of them, or set BEANSTALK_SERVER\n$/,
    ),
  })
})

test('a batch is spread over the servers, and told in the order of its lines', async () => {
  const [a, b] = await startTwo()
  const lines = Array.from({ length: 2000 }, (_, i) => `{"n":${i}}`).join('\n')
  const run = await runWith([a, b], ['-a', 'sleep', '--batch', '-', '--json'], lines)
  expect(run).toMatchObject({ code: 0, stderr: '' })
  const told = run.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(told.at(-1)).toMatchObject({ accepted: 2000, first_line: 1, last_line: 2000, failed: null, next_line: 2001 })
  expect(told.slice(0, -1).map(({ line }) => line)).toEqual(Array.from({ length: 2000 }, (_, i) => i + 1))
  const [onA, onB] = await Promise.all([jobsOn(a), jobsOn(b)])
  expect(onA + onB).toBe(2000)
  expect(Math.min(onA, onB)).toBeGreaterThan(800)
  expect(told.filter(({ ticket }) => ticket?.endsWith(`@${addressOf(a)}`))).toHaveLength(onA)
})

test('a batch goes on when one of the servers is killed in the middle: each line is accepted once, and none is lost', async () => {
  const [a, b] = await startTwo()
  const env = { BEANSTALK_SERVER: listOf(a, b) }
  const lines = Array.from({ length: 20_000 }, (_, i) => `{"n":${i}}`).join('\n')
  const { ended, text } = startQproducer(undefined, ['-a', 'sleep', '--batch', '-', '--json'], { env, stdin: lines })
  await until('some are accepted', () => text.stdout.length > 100_000)
  await a.kill()
  const run = await ended
  expect(run.code).toBe(0)
  expect(run.stderr).toMatch(/^qproducer: .*: its jobs go to the other servers.*\n$/)
  const told = run.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(told.at(-1)).toMatchObject({ accepted: 20_000, failed: null, unanswered: null, refused_lines: [] })
  expect(told.slice(0, -1).map(({ line }) => line)).toEqual(Array.from({ length: 20_000 }, (_, i) => i + 1))
  // Each ticket of the other one is a line of its own.
  const onB = told.filter(({ ticket }) => ticket?.endsWith(`@${addressOf(b)}`))
  expect(await jobsOn(b)).toBe(onB.length)
})

test('--wait follows a job of several servers to its end, over the loss of the one that has it not', async () => {
  const home = await install()
  addRuns(home)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const servers = [home.broker, other]
  const worker = await home.startWorker({ BEANSTALK_SERVER: listOf(...servers) })
  const env = { BEANSTALK_SERVER: listOf(...servers), RESULT_BASEURL: worker.url.replace(/\/$/, '') }
  const uuid = uuidFor(other, ...servers)
  const run = await runQproducer(undefined, ['-a', 'ok', '--uuid', uuid, '--wait', '--json'], { env })
  expect(run.code).toBe(0)
  expect(JSON.parse(run.stdout)).toMatchObject({ uuid, ticket: `1@${addressOf(other)}`, state: 'complete', result: 2 })
  await home.broker.kill()
  const alone = uuidFor(home.broker, ...servers)
  const second = await runQproducer(undefined, ['-a', 'ok', '--uuid', alone, '--wait'], { env })
  expect(second.code).toBe(0)
  expect(JSON.parse(second.stdout)).toMatchObject({ uuid: alone, result: 2 })
  expect(second.stderr).toMatch(/its jobs go to the other servers\n/)
})
