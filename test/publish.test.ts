import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { encodeStatus, type JobState } from '../src/job/result.ts'
import { countedAttempts, readHistory, type Stores } from '../src/publish.ts'
import { openLocalStore } from '../src/store/store.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'
let top: string
let stores: Stores & { s3: NonNullable<Stores['s3']> }

// Stores share one contract: a second directory stands for the bucket that several hosts share.
beforeEach(async () => {
  top = mkdtempSync(join(tmpdir(), 'qworker-publish-'))
  for (const name of ['here', 'shared']) mkdirSync(join(top, name))
  stores = { local: await openLocalStore(join(top, 'here')), s3: await openLocalStore(join(top, 'shared')) }
})
afterEach(() => rmSync(top, { recursive: true }))

function makeStatus(state: JobState, attempts: number, minute: number): string {
  const record = {
    worker: 'w',
    started: '',
    ended: '',
    duration_seconds: 0,
    outcome: 'failed' as const,
    exit_code: 1,
    error: '',
    stderr_tail: '',
  }
  return encodeStatus({
    format: 1,
    uuid: UUID,
    type: 'a',
    state,
    timestamp: new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString(),
    attempts: Array.from({ length: attempts }, (_, i) => ({ ...record, attempt: i + 1 })),
  })
}

test('a job that another host published and could not settle is complete here, and not run again', async () => {
  await stores.s3.publish({ uuid: UUID, files: new Map(), status: makeStatus('complete', 1, 1), result: '{}' })
  expect(await readHistory(stores, UUID, true)).toMatchObject({ isComplete: true })
  expect(await readHistory(stores, UUID, false)).toMatchObject({ isComplete: false })
})

test('attempts of other hosts are counted: the newer of both histories holds', async () => {
  await stores.local.publish({ uuid: UUID, files: new Map(), status: makeStatus('queued', 1, 1) })
  await stores.s3.publish({ uuid: UUID, files: new Map(), status: makeStatus('queued', 3, 2) })
  expect(countedAttempts(await readHistory(stores, UUID, true))).toHaveLength(3)
  await stores.local.writeStatus(UUID, makeStatus('queued', 4, 3))
  expect(countedAttempts(await readHistory(stores, UUID, true))).toHaveLength(4)
})

test('a status of complete without a result is no completion', async () => {
  await stores.s3.publish({ uuid: UUID, files: new Map(), status: makeStatus('complete', 1, 1) })
  expect(await readHistory(stores, UUID, true)).toMatchObject({ isComplete: false })
})
