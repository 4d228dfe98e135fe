import { expect, test } from 'vitest'
import { type BadRow, computeVerdict, type Facts, type JobFacts } from '../../src/sailor/torture/verdict.ts'

const complete: JobFacts = {
  id: 'a'.repeat(32),
  expects: 'sailor',
  hasStatus: true,
  puts: [{ answer: 'accepted', state: 'gone' }],
  disk: { result: 'whole', state: 'complete' },
  s3: 'same',
}
const buried: JobFacts = {
  ...complete,
  id: 'b'.repeat(32),
  puts: [{ answer: 'accepted', state: 'buried' }],
  disk: { result: 'none', state: 'failed', reason: 'exit 10 (attempt 4 of 4)' },
  s3: undefined,
}
const malformed: JobFacts = {
  id: 'malformed-3',
  expects: 'refused',
  hasStatus: false,
  puts: [{ answer: 'accepted', state: 'buried' }],
  disk: { result: 'none' },
  s3: undefined,
}

const OPEN: unknown[] = ['ready', 'delayed', 'reserved']

function facts(...jobs: JobFacts[]): Facts {
  const none = {
    publishedTwice: [],
    ranTwice: [],
    survivors: [],
    lateKills: [],
    leaks: [],
    crashes: [],
    stuck: [],
    blind: [],
  }
  return {
    jobs,
    leftOpen: jobs.flatMap(({ puts }) => puts).filter(({ state }) => OPEN.includes(state)).length,
    ...none,
  }
}

function badRowsOf(given: Facts): string[] {
  const { bad, clean } = computeVerdict(given)
  const rows = Object.entries(bad).filter(([, findings]) => findings.length > 0)
  expect(clean).toBe(rows.length === 0)
  return rows.map(([row]) => row)
}

test('jobs that are complete, or buried with a reason, make a clean verdict', () => {
  const verdict = computeVerdict(facts(complete, buried, malformed))
  expect(verdict).toMatchObject({ clean: true, accepted: 3, unknown: 0, complete: 1, buried: 2 })
})

test.each<[string, BadRow, Partial<JobFacts>]>([
  ['is gone and left nothing', 'lost', { disk: { result: 'none' } }],
  ['is gone and its status is queued', 'lost', { disk: { result: 'none', state: 'queued' } }],
  ['is gone from the queue though it failed', 'lost', { disk: { result: 'none', state: 'failed', reason: 'exit 1' } }],
  ['is buried and says no reason', 'lost', { puts: buried.puts, disk: { result: 'none', state: 'failed' } }],
  ['is buried and has no status', 'lost', { puts: buried.puts, disk: { result: 'none' } }],
  ['waits', 'unfinished', { puts: [{ answer: 'accepted', state: 'ready' }], disk: { result: 'none' } }],
  ['waits for S3 for ever', 'unfinished', { puts: [{ answer: 'accepted', state: 'delayed' }] }],
  ['is reserved by nobody', 'unfinished', { puts: [{ answer: 'accepted', state: 'reserved' }] }],
  [
    'has a damaged result',
    'damaged',
    { disk: { result: 'damaged', damage: 'x has another sha256', state: 'complete' } },
  ],
  ['has a result and a status that contradicts it', 'damaged', { disk: { result: 'whole', state: 'failed' } }],
  ['could only be refused and has a result', 'damaged', { expects: 'refused' }],
  ['is not on S3', 'notOnS3', { s3: 'missing' }],
  ['is another on S3', 'notOnS3', { s3: 'different' }],
])('a job that %s makes the verdict bad: %s', (_what, row, change) => {
  expect(badRowsOf(facts(buried, { ...complete, ...change }))).toEqual([row])
})

test.each<BadRow & keyof Facts>([
  'publishedTwice',
  'ranTwice',
  'survivors',
  'lateKills',
  'leaks',
  'crashes',
  'stuck',
  'blind',
])('something seen of %s makes the verdict bad', (row) => {
  expect(badRowsOf({ ...facts(complete), [row]: [{ id: complete.id, detail: 'planted' }] })).toEqual([row])
})

test('a put whose answer was lost is not counted as lost, whether the job is there or not', () => {
  const unanswered = [{ answer: 'unknown', state: undefined }] as const
  const verdict = computeVerdict(
    facts(
      { ...complete, puts: unanswered },
      { ...complete, id: 'c'.repeat(32), puts: unanswered, disk: { result: 'none' }, s3: undefined },
      { ...buried, puts: unanswered },
    ),
  )
  expect(verdict).toMatchObject({ clean: true, accepted: 0, unknown: 3, complete: 1, buried: 1 })
})

test('a job whose put was not answered and that waits for ever makes the verdict bad', () => {
  expect(badRowsOf({ ...facts(complete), leftOpen: 1 })).toEqual(['unfinished'])
})

test('a job that was put twice is one job: complete when one of its tickets was run, whatever became of the other', () => {
  const twice = (...states: ('gone' | 'buried' | 'ready')[]) =>
    ({ ...complete, puts: states.map((state) => ({ answer: 'accepted', state })) }) as JobFacts
  expect(badRowsOf(facts(twice('gone', 'gone')))).toEqual([])
  expect(badRowsOf(facts(twice('buried', 'gone')))).toEqual([])
  expect(badRowsOf(facts(twice('gone', 'ready')))).toEqual(['unfinished'])
})
