import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { EXIT } from '../../src/cli/exit.ts'
import { exitCodeOf, memberText, type WaitOptions, waitForEnd } from '../../src/cli/wait.ts'
import { type AttemptRecord, encodeResult, encodeStatus, type StatusDocument } from '../../src/job/result.ts'
import { openQueue, QueueError, type TicketState } from '../../src/queue/queue.ts'
import { freePort, startBroker, type TestBroker } from '../support/broker.ts'
import { runQproducer, startQproducer } from './run-qproducer.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
const TIME = '2030-01-02T03:04:05.000Z'
let broker: TestBroker

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

/** Serves the answers in turn, the last one for ever. */
async function serve(...answers: RequestListener[]): Promise<string> {
  let turn = 0
  const server = createServer((request, response) => {
    response.setHeader('content-type', 'application/json')
    answers[Math.min(turn++, answers.length - 1)]?.(request, response)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`
}

const say =
  (status: number, body: string, headers: Record<string, string> = {}): RequestListener =>
  (_, response) => {
    response.writeHead(status, headers).end(body)
  }

const resultText = encodeResult({
  uuid: UUID,
  type: 'sleep',
  version: '1',
  timestamp: TIME,
  attempt: 2,
  worker: 'w',
  started: TIME,
  finished: TIME,
  duration_seconds: 1,
  exit_code: 0,
  resultJson: '{"big":12345678901234567890.10,"text":"a\\"}:,b"}',
  files: [],
})

const attempt = (more: Partial<AttemptRecord>): AttemptRecord => ({
  attempt: 1,
  worker: 'w',
  started: TIME,
  ended: TIME,
  duration_seconds: 1,
  outcome: 'failed',
  exit_code: 10,
  error: 'exit 10',
  stderr_tail: '',
  ...more,
})

const makeStatus = (
  state: StatusDocument['state'],
  attempts: AttemptRecord[] = [],
  reason?: string,
): StatusDocument => ({
  format: 1,
  uuid: UUID,
  type: 'sleep',
  state,
  timestamp: TIME,
  ...(reason === undefined ? {} : { reason }),
  attempts,
})

const pending = (state: 'queued' | 'running', retryAfter = '1') =>
  say(202, encodeStatus(makeStatus(state)), { 'retry-after': retryAfter })
const failed = (attempts: AttemptRecord[]) => say(422, encodeStatus(makeStatus('failed', attempts, 'gave up')))

const waitArgs = (...more: string[]) => ['-a', 'sleep', '--uuid', UUID, '--tube', 'wait', '--wait', ...more]
const wait = (baseUrl: string, ...more: string[]) =>
  runQproducer(broker, waitArgs(...more), { env: { RESULT_BASEURL: baseUrl } })

/** Takes the job that is put next and deletes it, as a worker elsewhere would. */
async function deleteNextJob() {
  const queue = await openQueue(broker.url)
  onTestFinished(() => queue.close())
  await queue.watch(['wait'])
  const job = await queue.reserve(20)
  if (job === undefined) throw new Error('no job came')
  await job.delete()
}

async function emptyTube() {
  const queue = await openQueue(broker.url)
  await queue.watch(['wait'])
  for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) await job.delete()
  queue.close()
}

describe('qproducer --wait', () => {
  it('follows a job through queued and running, prints its result as received, and ends with 0', async () => {
    const base = await serve(say(404, '{}'), pending('queued'), pending('running'), say(200, resultText))
    const run = await wait(base)
    expect(run.stdout).toBe(resultText)
    expect(run.stderr).toBe(
      `generated work package: [{"uuid":"${UUID}","type":"sleep"},{}]\nresult URL: ${base}/${UUID}\n`,
    )
    expect(run.code).toBe(0)
  })

  it('with --json prints one object, with every digit of the result', async () => {
    const run = await wait(await serve(say(200, resultText)), '--json')
    expect(run.code).toBe(0)
    expect(run.stdout.split('\n')).toHaveLength(2)
    expect(run.stdout).toContain('"result":{"big":12345678901234567890.10,')
    expect(JSON.parse(run.stdout)).toMatchObject({ uuid: UUID, state: 'complete', exit_code: 0, attempt: 2, files: [] })
  })

  it.each([
    ['its own exit code', [attempt({ exit_code: 3 }), attempt({ exit_code: 10 })], 10],
    ['128 + the signal', [attempt({ outcome: 'signalled', exit_code: null, signal: 'SIGSEGV' })], 139],
    ['124 when its time was over', [attempt({ outcome: 'timed_out', exit_code: null, signal: 'SIGKILL' })], 124],
    ['1 when there is nothing better', [], 1],
  ])('ends for a failed job with %s', async (_, attempts, code) => {
    const run = await wait(await serve(failed(attempts)))
    expect(run.code).toBe(code)
    expect(JSON.parse(run.stdout)).toMatchObject({ state: 'failed', reason: 'gave up' })
    expect(run.stderr).toContain(`qproducer: job ${UUID} is failed after ${attempts.length} attempt`)
    expect(run.stderr).toContain(': gave up\n')
  })

  it('ends with 124 when --timeout is over, and says that the job goes on', async () => {
    const base = await serve(pending('running'))
    const run = await wait(base, '--timeout', '1', '--json')
    expect(run.code).toBe(124)
    expect(run.stderr).toContain(`the job goes on, its result will be at ${base}/${UUID}`)
    expect(JSON.parse(run.stdout)).toMatchObject({ uuid: UUID, state: 'unknown', exit_code: null })
  })

  it('ends with 124 in time when the server takes a request and never answers', async () => {
    const started = performance.now()
    expect((await wait(await serve(() => undefined), '--timeout', '1')).code).toBe(124)
    expect(performance.now() - started).toBeLessThan(4000)
  })

  it('ends with 130 at Ctrl-C, and says that the job goes on', async () => {
    let child: ReturnType<typeof startQproducer>['child'] | undefined
    const base = await serve((request, response) => {
      child?.kill('SIGINT')
      pending('running')(request, response)
    })
    const live = startQproducer(broker, waitArgs(), { env: { RESULT_BASEURL: base } })
    child = live.child
    const run = await live.ended
    expect(run).toMatchObject({ code: 130, stdout: '' })
    expect(run.stderr).toContain(`interrupted; the job goes on, its result will be at ${base}/${UUID}`)
  })

  it('goes on while the result server is not there and the broker has the job, and says so once', async () => {
    const base = `http://127.0.0.1:${await freePort()}`
    const run = await wait(base, '--timeout', '2')
    expect(run.code).toBe(124)
    expect(run.stderr.match(/cannot be reached/g)).toHaveLength(1)
    expect(run.stderr).toContain('Is qworker running, and is RESULT_BASEURL its address?')
  })

  it('ends with 69 when the job ended elsewhere', async () => {
    await emptyTube()
    const ended = deleteNextJob()
    const run = await wait(await serve(say(404, '{"error":"unknown"}')))
    await ended
    expect(run).toMatchObject({ code: 69, stdout: '' })
    expect(run.stderr).toContain(`the broker no longer has job ${UUID}`)
    expect(run.stderr).toContain('set RESULT_BASEURL to the HTTP server of the worker that ran it')
  })
})

/** With quick clocks, and a broker that says what the test wants. */
function waitHere(url: string, state: () => TicketState, more: Partial<WaitOptions> = {}) {
  const warnings: string[] = []
  const shown: string[] = []
  const end = waitForEnd({
    uuid: UUID,
    url,
    ticketState: async () => state(),
    warn: (message) => warnings.push(message),
    show: (line) => shown.push(line),
    pace: { quickMs: 5, slowMs: 20, raceMs: 200, staleMs: 200, darkMs: 200, brokerMs: 10, requestMs: 300 },
    ...more,
  })
  return { end, warnings, shown }
}

describe('waiting', () => {
  it('takes a result that is published a moment after the broker lost the job', async () => {
    const base = await serve(say(404, '{}'), say(404, '{}'), say(404, '{}'), say(200, resultText))
    expect(await waitHere(base, () => 'gone').end).toMatchObject({ kind: 'complete' })
  })

  it('ends when a job is buried and its server does not know it', async () => {
    const end = await waitHere(await serve(say(404, '{}')), () => 'buried').end
    expect(end).toMatchObject({
      kind: 'unknown',
      message: expect.stringContaining(`the broker has buried job ${UUID}`),
    })
  })

  it('does not take the page of another server for a result', async () => {
    for (const body of ['<html>It works</html>', '{"uuid":"other"}', 'null']) {
      const end = await waitHere(await serve(say(200, body)), () => 'gone').end
      expect(end).toMatchObject({
        kind: 'unknown',
        message: expect.stringContaining('answers 200, but not with the result'),
      })
    }
  })

  it('warns once of a server that does not help, and goes on', async () => {
    const base = await serve(say(500, ''), say(500, ''), say(503, ''), say(200, resultText))
    const watch = waitHere(base, () => 'ready')
    expect(await watch.end).toMatchObject({ kind: 'complete' })
    expect(watch.warnings).toHaveLength(1)
    expect(watch.warnings[0]).toContain('answers 500; the broker calls the job ready')
  })

  it('ends when the server calls a job queued that the broker has not had for long', async () => {
    const end = await waitHere(await serve(pending('queued', '0')), () => 'gone').end
    expect(end).toMatchObject({ kind: 'unknown', message: expect.stringContaining('still calls it queued') })
  })

  it('ends when neither server nor broker answers for long', async () => {
    const watch = waitHere(`http://127.0.0.1:${await freePort()}`, () => {
      throw new QueueError('unreachable', 'no broker')
    })
    expect(await watch.end).toMatchObject({ kind: 'unknown', message: expect.stringContaining('may go on') })
  })

  it('ends when the result has expired', async () => {
    const end = await waitHere(await serve(say(410, '{}')), () => 'gone').end
    expect(end).toMatchObject({ kind: 'unknown', message: expect.stringContaining('has expired') })
  })

  it('polls no sooner than Retry-After once it has slowed down, and shows what the job does', async () => {
    const times: number[] = []
    const base = await serve((request, response) => {
      times.push(performance.now())
      const second = say(202, encodeStatus(makeStatus('running', [attempt({})])), { 'retry-after': '60' })
      ;(times.length < 15 ? second : say(200, resultText))(request, response)
    })
    const watch = waitHere(base, () => 'reserved', {
      pace: { quickMs: 2, slowMs: 4, retryAfterMaxMs: 100, brokerMs: 1000 },
    })
    expect(await watch.end).toMatchObject({ kind: 'complete' })
    expect((times.at(-1) ?? 0) - (times.at(-2) ?? 0)).toBeGreaterThan(90)
    expect(watch.shown[0]).toBe('running, attempt 2, 0 s')
  })

  it('tells an exit code for whatever the last attempt came to', () => {
    const code = (more: Partial<AttemptRecord>) => exitCodeOf(makeStatus('failed', [attempt(more)]))
    expect(code({ exit_code: 65, outcome: 'rejected' })).toBe(65)
    expect(code({ exit_code: 0, outcome: 'output_invalid' })).toBe(EXIT.failed)
    expect(code({ exit_code: null, outcome: 'signalled', signal: 'SIGKILL' })).toBe(137)
    expect(code({ exit_code: null, outcome: 'signalled', signal: 'SIGNOPE' })).toBe(EXIT.failed)
    expect(code({ exit_code: null, outcome: 'not_started' })).toBe(EXIT.failed)
  })

  it('cuts one member out of a JSON text without touching it', () => {
    const json = ' {"a" : [1,{"result":2}], "res\\u0075lt" : {"x":1.10, "y":"},\\"" } , "last":null}'
    expect(memberText(json, 'result')).toBe('{"x":1.10, "y":"},\\"" }')
    expect(memberText(json, 'a')).toBe('[1,{"result":2}]')
    expect(memberText(json, 'last')).toBe('null')
    expect(memberText(json, 'x')).toBeUndefined()
  })
})
