import { expect, test } from 'vitest'
import { backoffSeconds, type Outcome, reasonOf, settle, spendsAttempt } from '../../src/job/outcome.ts'

const rules = { retryDelaySeconds: 1, retryDelayMaxSeconds: 3600 }
const decide = (outcome: Outcome, attempt = 1, max = 5) => settle(outcome, attempt, max, rules, 0)

test('a success is deleted', () => {
  expect(decide({ kind: 'success', exitCode: 0 })).toEqual({ action: 'delete' })
})

const retried: Outcome[] = [
  { kind: 'failed', exitCode: 10 },
  { kind: 'deferred', exitCode: 75 },
  { kind: 'signalled', signal: 'SIGSEGV' },
  { kind: 'timed_out', limitSeconds: 5 },
  { kind: 'limit_exceeded', detail: 'too long' },
  { kind: 'output_exceeded', detail: 'too much' },
  { kind: 'output_invalid', detail: 'no JSON' },
  { kind: 'not_started', detail: 'no program' },
]

test.each(retried)('$kind is released with backoff, and buried with its reason at the last attempt', (outcome) => {
  expect(decide(outcome, 1)).toEqual({ action: 'release', delaySeconds: 1 })
  expect(decide(outcome, 4)).toEqual({ action: 'release', delaySeconds: 8 })
  expect(decide(outcome, 5)).toEqual({ action: 'bury', reason: `${reasonOf(outcome)} (attempt 5 of 5)` })
  expect(decide(outcome, 1, 1).action).toBe('bury')
  expect(spendsAttempt(outcome)).toBe(true)
})

test.each<Outcome>([
  { kind: 'rejected', exitCode: 65 },
  { kind: 'malformed', detail: 'not JSON' },
  { kind: 'unknown_type', detail: 'no algorithm' },
])('$kind is buried at once: no retry can help', (outcome) => {
  expect(decide(outcome, 1)).toEqual({ action: 'bury', reason: reasonOf(outcome) })
})

test('what is not the fault of the job spends no attempt', () => {
  expect(decide({ kind: 'interrupted' }, 5)).toEqual({ action: 'release', delaySeconds: 0 })
  expect(decide({ kind: 'worker_fault', detail: 'disk full' }, 5)).toMatchObject({ action: 'release' })
  expect(decide({ kind: 'lost', detail: 'gone' }, 5)).toEqual({ action: 'none' })
  for (const kind of ['interrupted', 'worker_fault', 'lost'] as const)
    expect(spendsAttempt({ kind, detail: '' } as Outcome)).toBe(false)
})

test('the limits in force stand beside an exit that they may explain', () => {
  const limits = 'limits: memory 512 MiB, peak 498 MiB'
  expect(reasonOf({ kind: 'failed', exitCode: 1, limits })).toBe('exit 1 (limits: memory 512 MiB, peak 498 MiB)')
  expect(reasonOf({ kind: 'signalled', signal: 'SIGABRT', limits })).toBe(`died by SIGABRT (${limits})`)
})

test('backoff doubles, is bounded, and gets up to a tenth more by chance', () => {
  expect([1, 2, 3, 4, 12, 13, 1000].map((attempt) => backoffSeconds(attempt, rules, 0))).toEqual([
    1, 2, 4, 8, 2048, 3600, 3600,
  ])
  expect(backoffSeconds(8, rules, 0.999)).toBe(141)
  expect(backoffSeconds(20, rules, 0.999)).toBe(3600)
  expect(backoffSeconds(3, { retryDelaySeconds: 0, retryDelayMaxSeconds: 0 }, 0.5)).toBe(0)
})
