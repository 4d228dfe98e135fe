import { stripVTControlCharacters } from 'node:util'
import { expect, test } from 'vitest'
import { makeLive } from '../../../src/cli/demo/live.ts'
import { makeEventWriter, openScreen } from '../../../src/cli/demo/screen.ts'
import { type Told, tellLogLine } from '../../../src/cli/demo/story.ts'
import { hasGlyphs, terminalEnvironment } from '../../../src/config.ts'

const UUID = '54aa56145688426daf43409837a4207d'
const job = { uuid: UUID, type: 'drunken_sailor', attempt: 2 }

function textOf(line: object): string | undefined {
  return tellLogLine(JSON.stringify(line))?.text
}

test('what happens to a job is told in words of its own', () => {
  const lines: [object, string][] = [
    [{ event: 'job_dequeued', ...job, max_attempts: 5 }, 'attempt 2 of 5 begins'],
    [{ event: 'run_ending', ...job, why: 'timed_out' }, 'time is up (TTR + GRACE_TIME): it is ended'],
    [
      { event: 'run_ended', ...job, outcome: 'timed_out', signal: 'SIGKILL', duration_seconds: 4.06 },
      'attempt 2 ended by SIGKILL after 4.1 s',
    ],
    [
      { event: 'run_ended', ...job, outcome: 'failed', error: 'exit 10', duration_seconds: 0.2, survivors: [12] },
      'attempt 2 failed with exit 10 after 0.2 s; STILL ALIVE: 12',
    ],
    [{ event: 'job_published', ...job, files: 1 }, 'published, with 1 file'],
    [
      { event: 'job_settled', ...job, settlement: { action: 'release', delaySeconds: 4 } },
      'back in the queue, tried again in 4 s',
    ],
    [
      { event: 'job_settled', ...job, settlement: { action: 'bury', reason: 'exit 65' } },
      'failed for good, set aside: exit 65',
    ],
    [{ event: 'job_refused', ...job, error: 'no such type' }, 'cannot be run, set aside: no such type'],
  ]
  for (const [line, text] of lines) expect(textOf(line)).toBe(text)
})

test('what only operators want to know is left out', () => {
  for (const event of ['worker_cgroup', 'worker_draining', 'algorithm_problem']) {
    expect(textOf({ event, level: 'warn', msg: 'x' })).toBeUndefined()
  }
})

test('events that it has no words for are told in those of the log, and lines that are none as they are', () => {
  expect(tellLogLine('{"event":"brand_new","level":"warn","msg":"something"}')).toMatchObject({
    text: 'something',
    tone: 'warning',
  })
  expect(textOf({ event: 'brand_new' })).toBe('brand_new')
  expect(tellLogLine('Segmentation fault')).toMatchObject({ text: 'Segmentation fault' })
})

test('a job is seen to be put before it begins, whichever of the two is heard first', () => {
  const shown: string[] = []
  const live = makeLive(
    ({ text }) => void shown.push(text),
    () => undefined,
  )
  const expected = live.expectJob()
  live.hear(JSON.stringify({ event: 'job_dequeued', ...job, max_attempts: 5 }))
  live.hear('{"event":"worker_ready","slots":2,"http":"there"}')
  expected.tell(UUID, 'drunken_sailor')
  live.hear(JSON.stringify({ event: 'job_published', ...job, files: 0 }))
  const other = live.expectJob()
  live.hear(JSON.stringify({ event: 'job_refused', uuid: 'f'.repeat(32), type: 'x', error: 'of somebody else' }))
  other.end()
  expect(shown).toEqual([
    'the worker takes 2 jobs at a time; results at there',
    'put into the queue',
    'attempt 2 of 5 begins',
    'published',
    'cannot be run, set aside: of somebody else',
  ])
})

const plain = terminalEnvironment({})
const told: Told = { uuid: UUID, type: 'drunken_sailor', text: 'attempt 1 of 5 begins', tone: 'plain' }

test('columns are aligned; a narrow terminal names the type once and goes on below itself', () => {
  const wide = makeEventWriter(openScreen('auto', {}, plain))
  expect(wide(told, 3140)).toBe('  3.1 s  54aa5614  drunken_sailor  attempt 1 of 5 begins')
  expect(wide({ ...told, type: 'pi' }, 1_234_567)).toBe(' 1235 s  54aa5614  pi              attempt 1 of 5 begins')
  const narrow = makeEventWriter(openScreen('never', { isTTY: true, columns: 40 }, plain))
  expect(narrow(told, 3140).split('\n')).toEqual([
    '  3.1 s  54aa5614  drunken_sailor:',
    '                   attempt 1 of 5 begins',
  ])
  expect(narrow(told, 3140)).toBe('  3.1 s  54aa5614  attempt 1 of 5 begins')
})

test('what comes from outside neither steers the terminal nor pretends to be a line of ours', () => {
  const write = makeEventWriter(openScreen('auto', {}, plain))
  const evil = { uuid: '\x1b[2J\u202e56789', type: 'a\nb\x9b', text: 'one\r\ntwo\x1b]0;x\x07', tone: 'bad' } as const
  const line = write(evil, 0)
  expect(line).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202e]/)
  expect(line).toContain('one two?]0;x?')
})

test('colours: for a terminal, as --color, NO_COLOR and FORCE_COLOR ask', () => {
  const isColored = (choice: 'auto' | 'always' | 'never', isTTY: boolean, env: Record<string, string>) => {
    const text = openScreen(choice, { isTTY }, terminalEnvironment(env)).paint('red', 'x')
    expect(stripVTControlCharacters(text)).toBe('x')
    return text !== 'x'
  }
  expect(isColored('auto', true, {})).toBe(true)
  expect(isColored('auto', false, {})).toBe(false)
  expect(isColored('auto', true, { NO_COLOR: '' })).toBe(true)
  expect(isColored('auto', true, { NO_COLOR: '0' })).toBe(false)
  expect(isColored('auto', true, { TERM: 'dumb' })).toBe(false)
  expect(isColored('auto', false, { FORCE_COLOR: '1' })).toBe(true)
  expect(isColored('auto', true, { FORCE_COLOR: '0' })).toBe(false)
  expect(isColored('auto', true, { NO_COLOR: '1', FORCE_COLOR: '1' })).toBe(true)
  expect(isColored('always', false, { NO_COLOR: '1' })).toBe(true)
  expect(isColored('never', true, { FORCE_COLOR: '1' })).toBe(false)
})

test('glyphs beyond ASCII: only where the locale has UTF-8 and the terminal more than 512 of them', () => {
  expect(hasGlyphs({ LANG: 'de_DE.UTF-8', TERM: 'xterm' })).toBe(true)
  expect(hasGlyphs({ LC_ALL: 'C.utf8' })).toBe(true)
  expect(hasGlyphs({ LC_ALL: 'C', LANG: 'de_DE.UTF-8' })).toBe(false)
  expect(hasGlyphs({})).toBe(false)
  expect(hasGlyphs({ LANG: 'C.UTF-8', TERM: 'dumb' })).toBe(false)
  expect(hasGlyphs({ LANG: 'C.UTF-8', TERM: 'linux' })).toBe(false)
})
