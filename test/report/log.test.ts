import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { makeBus, type WorkerEvent } from '../../src/report/events.ts'
import { type LogOptions, makeLog } from '../../src/report/log.ts'

const PROJECT = fileURLToPath(new URL('../..', import.meta.url))
const UUID = 'bc3a925099b9012e0f06549a20077664'
const job = { slot: 1, uuid: UUID, type: 'drunken_sailor', ticket: '7', tube: 'default' }
const PAYLOAD = '{"secret":"PAYLOAD"}'

const dequeued = {
  ...job,
  event: 'job_dequeued',
  attempt: 1,
  maxAttempts: 5,
  directory: `/var/tmp/qworker/bc/${UUID}`,
  payloadJson: PAYLOAD,
  secondsLeft: 3,
  priority: 1337,
} as const satisfies WorkerEvent
const ended = {
  ...job,
  event: 'run_ended',
  attempt: 1,
  outcome: { kind: 'success', exitCode: 0 },
  exitCode: 0,
  signal: undefined,
  durationSeconds: 3.025,
  survivors: [],
  error: null,
  stdout: 'STDOUT 1\nSTDOUT 2\n',
} as const satisfies WorkerEvent
const failed: WorkerEvent = {
  ...ended,
  outcome: { kind: 'failed', exitCode: 10 },
  exitCode: 10,
  error: 'exit 10',
  stdout: '',
}
const settled = { ...job, event: 'job_settled', attempt: 1, durationSeconds: 3.1 } as const
const deleted: WorkerEvent = { ...settled, settlement: { action: 'delete' } }
const released: WorkerEvent = { ...settled, settlement: { action: 'release', delaySeconds: 2 } }
const buried: WorkerEvent = { ...settled, settlement: { action: 'bury', reason: 'exit 10 (attempt 5 of 5)' } }
const ending: WorkerEvent = { ...job, event: 'run_ending', attempt: 1, pid: 4711, why: 'timed_out' }
const timedOut = {
  ...ended,
  outcome: { kind: 'timed_out', limitSeconds: 5 },
  exitCode: null,
  signal: 'SIGKILL',
  survivors: [9, 10],
  error: 'ended after 5 s (TTR + GRACE_TIME)',
  stdout: '',
} as const satisfies WorkerEvent

/** One event of each kind; `text` stands wherever something from outside is shown. */
function everyEvent(text: string): WorkerEvent[] {
  const subject = { slot: 1, ticket: '7', uuid: UUID, type: text, tube: text }
  const detail = { kind: 'unknown_type', detail: text } as const
  return [
    {
      event: 'worker_ready',
      worker: text,
      slots: 2,
      tubes: [text],
      broker: text,
      algorithms: [text],
      http: text,
    },
    { event: 'worker_draining', running: 1, drainSeconds: 30, cause: text },
    { event: 'worker_interrupting', running: 1, cause: text },
    { event: 'worker_stopped', settled: 1 },
    { event: 'algorithms_read', algorithms: [text] },
    { event: 'algorithm_problem', problem: text },
    { event: 'broker_lost', slot: 1, error: text },
    { event: 'broker_back', slot: 1 },
    { ...dequeued, type: text, directory: text, payloadJson: JSON.stringify(text) + text },
    { ...subject, event: 'job_refused', outcome: detail, error: text },
    { ...subject, event: 'job_refused', outcome: { kind: 'malformed', detail: text }, error: text },
    { ...job, event: 'job_already_complete', type: text },
    { ...job, event: 'run_started', attempt: 1, pid: 4711 },
    { ...job, event: 'run_ending', attempt: 1, pid: 4711, why: text },
    { ...ended, stdout: text },
    { ...timedOut, error: text },
    { ...ended, outcome: { kind: 'output_invalid', detail: text }, error: text },
    { ...job, event: 'job_published', attempt: 1, url: text, files: 1 },
    { ...subject, event: 'publish_failed', store: 'local', error: text },
    { ...subject, event: 'reservation_broken', error: text },
    { ...job, event: 'job_busy', worker: text },
    { event: 'outbox_retry', uuid: text, tries: 1, error: text },
    { event: 'worker_paused', reason: text, cause: text },
    { event: 'worker_recovered', worker: text, attempts: 1, survivors: [] },
    { event: 'config_refused', problems: [text] },
    { event: 'slot_state', slot: 1, state: 'busy', uuid: text, type: text, step: text, seconds: 1 },
    { ...settled, settlement: { action: 'bury', reason: text } },
    { ...settled, settlement: { action: 'none' } },
    { ...subject, event: 'settle_failed', action: 'bury', error: text, gone: false },
    { ...subject, event: 'slot_fault', error: text, retrySeconds: 1 },
    { event: 'slot_fault', slot: 1, error: text, retrySeconds: 1 },
  ]
}

function textOf(events: readonly WorkerEvent[], options: Partial<LogOptions> = {}): string {
  let written = ''
  const write = (text: string) => {
    written += text
  }
  const log = makeLog({ format: 'text', level: 'debug', verbose: false, write, ...options })
  for (const event of events) log(event)
  return written
}

/** JSON goes to descriptor 1, so it takes a process of its own. */
async function jsonOf(events: readonly WorkerEvent[], level = 'debug'): Promise<string> {
  const log = JSON.stringify(join(PROJECT, 'dist/report/log.js'))
  const program = `import { makeLog } from ${log}
const log = makeLog({ format: 'json', level: process.argv[1], verbose: false, write: () => {} })
for (const event of JSON.parse(process.argv[2])) log(event)`
  const args = ['--input-type=module', '-e', program, level, JSON.stringify(events)]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (data) => {
    said += data
  })
  const [code] = await once(child, 'close')
  expect(code).toBe(0)
  return said
}

test('verbose: the lines of the ancestor, to the letter', () => {
  const head = [
    '',
    `### Dequeued job ${UUID}, algorithm drunken_sailor`,
    ` + result directory: /var/tmp/qworker/bc/${UUID}`,
    ` + input data: ${PAYLOAD}`,
    ' + time left for processing: 3',
    ' + job queue priority: 1337',
  ]
  const started: WorkerEvent = { ...job, event: 'run_started', attempt: 1, pid: 4711 }
  const gone: WorkerEvent = {
    slot: 1,
    ticket: '7',
    event: 'settle_failed',
    action: 'release',
    error: 'NOT_FOUND',
    gone: true,
  }
  const fault: WorkerEvent = { ...job, event: 'slot_fault', error: 'ENOSPC', retrySeconds: 1 }
  const sequence = [dequeued, started, ended, deleted, dequeued, started, failed, released]
  expect(
    textOf([...sequence, dequeued, started, ending, timedOut, gone, fault], { verbose: true }).split('\n'),
  ).toEqual([
    ...head,
    'STDOUT 1',
    'STDOUT 2',
    'Algorithm terminated within expected time constraints.',
    'Algorithm terminated with exitstatus 0',
    'Job completed, removing from queue.',
    ...head,
    'Algorithm terminated within expected time constraints.',
    'Algorithm terminated with exitstatus 10',
    'Job failed, leaving job in queue.',
    'Next attempt in 2 s.',
    ...head,
    'Algorithm did not terminate within expected timeframe.',
    'Attempting to kill algorithm PID 4711',
    'Algorithm ended: ended after 5 s (TTR + GRACE_TIME)',
    'Job not found, cannot release it. Ignoring.',
    'Unexpected problem during job execution: ENOSPC - Releasing job.',
    '',
  ])
})

test('short: one line for each event, which names the job', () => {
  expect(textOf([dequeued, ending, timedOut, released, failed, buried, ended, deleted]).split('\n')).toEqual([
    `${UUID} drunken_sailor: attempt 1 of 5 begins`,
    `${UUID} drunken_sailor: ending process tree 4711 (timed_out)`,
    `${UUID} drunken_sailor: attempt 1 ended after 3.025 s: ended after 5 s (TTR + GRACE_TIME); STILL ALIVE: 9 10`,
    `${UUID} drunken_sailor: released, next attempt in 2 s`,
    `${UUID} drunken_sailor: attempt 1 ended after 3.025 s: exit 10`,
    `${UUID} drunken_sailor: buried: exit 10 (attempt 5 of 5)`,
    `${UUID} drunken_sailor: attempt 1 ended after 3.025 s: exit 0`,
    `${UUID} drunken_sailor: complete, removed from queue`,
    '',
  ])
})

test('short lines hold nothing of payload and stdout', () => {
  expect(textOf([dequeued, ended, deleted])).not.toMatch(/PAYLOAD|STDOUT/)
})

test.each([
  ['debug', 4],
  ['info', 3],
  ['warn', 2],
  ['error', 1],
] as const)('level %s', (level, lines) => {
  const started: WorkerEvent = { ...job, event: 'run_started', attempt: 1, pid: 4711 }
  expect(textOf([started, deleted, failed, buried], { level }).match(/\n/g)).toHaveLength(lines)
})

test('a long payload is cut, with its length', () => {
  const text = textOf([{ ...dequeued, payloadJson: `"${'x'.repeat(5000)}"` }], { verbose: true })
  expect(text).toContain(`${'x'.repeat(999)}... (5002 characters)`)
})

const CONTROLS = '\u001b[2J\u0007\u0000\r\u009b31m\u0085\u007f\u2028\u202e\u2066'
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/

test.each([false, true])('control characters from outside do not reach the terminal (verbose: %s)', (verbose) => {
  const text = textOf(everyEvent(`<${CONTROLS}>`), { verbose })
  expect(text).toContain('<?[2J???')
  expect(text).not.toMatch(CONTROL)
})

test('text from outside cannot pretend to be a line of ours', () => {
  const forged = 'x\n### Dequeued job forged'
  expect(textOf(everyEvent(forged))).not.toMatch(/^### Dequeued job forged/m)
  // What the algorithm printed is shown as its lines, as the ancestor did.
  const events = everyEvent(forged).filter(({ event }) => event !== 'run_ended')
  expect(textOf(events, { verbose: true })).not.toMatch(/^### Dequeued job forged/m)
})

test('json: one document per line, with fields named as in the published documents, without contents of jobs', async () => {
  const events = [dequeued, ending, timedOut, ended, deleted, released]
  const said = await jsonOf([...events, ...everyEvent(`PAYLOAD ${CONTROLS}\n`)])
  const lines = said.trimEnd().split('\n')
  const documents = lines.map((line) => JSON.parse(line))
  expect(documents).toHaveLength(events.length + everyEvent('').length)
  expect(documents[2]).toEqual({
    level: 'warn',
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
    pid: expect.any(Number),
    event: 'run_ended',
    slot: 1,
    uuid: UUID,
    type: 'drunken_sailor',
    ticket: '7',
    tube: 'default',
    attempt: 1,
    outcome: 'timed_out',
    exit_code: null,
    signal: 'SIGKILL',
    duration_seconds: 3.025,
    survivors: [9, 10],
    error: 'ended after 5 s (TTR + GRACE_TIME)',
    msg: `${UUID} drunken_sailor: attempt 1 ended after 3.025 s: ended after 5 s (TTR + GRACE_TIME); STILL ALIVE: 9 10`,
  })
  for (const { uuid, attempt } of documents.slice(0, events.length)) expect([uuid, attempt]).toEqual([UUID, 1])
  expect(lines.slice(0, events.length).join()).not.toMatch(/PAYLOAD|STDOUT/)
  expect(documents.some((document) => 'payload_json' in document || 'stdout' in document)).toBe(false)
})

test('json: control characters are escaped, and come back whole', async () => {
  const said = await jsonOf([{ event: 'algorithm_problem', problem: CONTROLS }])
  expect(said.trimEnd()).not.toMatch(CONTROL)
  expect(JSON.parse(said).problem).toBe(CONTROLS)
})

test('json: levels hold', async () => {
  expect((await jsonOf([deleted, failed, buried], 'error')).match(/\n/g)).toHaveLength(1)
})

test('json: a reader that goes away does not end the worker', async () => {
  const log = JSON.stringify(join(PROJECT, 'dist/report/log.js'))
  const program = `import { makeLog } from ${log}
const log = makeLog({ format: 'json', level: 'info', verbose: false, write: () => {} })
process.stdin.resume().on('end', async () => {
  for (let i = 0; i < 100; i++) { log({ event: 'broker_back', slot: i }); await new Promise(setImmediate) }
  process.stderr.write('alive')
})`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: 'pipe' })
  const closed = once(child.stdout, 'close')
  child.stdout.destroy()
  await closed
  child.stdin.end()
  let said = ''
  child.stderr.on('data', (data) => {
    said += data
  })
  const [code] = await once(child, 'close')
  expect([code, said]).toEqual([0, 'alive'])
})

test('a listener that throws stops neither the others nor who emits', () => {
  const faults: unknown[] = []
  const heard: string[] = []
  const bus = makeBus((error) => faults.push(error))
  const fault = new Error('listener')
  bus.subscribe(() => {
    throw fault
  })
  const end = bus.subscribe(({ event }) => heard.push(event))
  bus.emit(deleted)
  end()
  bus.emit(deleted)
  expect(heard).toEqual(['job_settled'])
  expect(faults).toEqual([fault, fault])
})
