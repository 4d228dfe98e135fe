import { expect, test } from 'vitest'
import { findRuns, install, PROJECT, until } from '../support/installation.ts'

const JOBS = 200

test('200 drunken sailors of all mischiefs: every job ends complete or buried with a reason, every kill leaves nobody', async () => {
  const home = await install({
    CONCURRENCY: '4',
    GRACE_TIME: '0',
    MAX_OUTPUT: '1MiB',
    MAX_ATTEMPTS: '2',
    ALGORITHM_DIRS: `${PROJECT}/algorithms`,
  })
  const worker = await home.startWorker()
  const uuids: string[] = []
  const base = Math.floor(Math.random() * 2 ** 31)
  console.log(`seeds from ${base} on`)
  for (let i = 0; i < JOBS; i++) {
    const payload = { seed: base + i, wild: true, sleep: 0.1, megabytes: 4 }
    uuids.push(await home.putJob('drunken_sailor', payload, { ttr: [1, 1, 1, 2, 3][i % 5] ?? 1 }))
  }
  const isFinal = (uuid: string) => ['complete', 'failed'].includes(home.status(uuid)?.state ?? '')
  await until('all jobs are final', () => uuids.every(isFinal), 220)
  const stats = () => home.broker.ask('stats-tube default\r\n', /\n\r\n$/)
  await until('the broker agrees', async () => /^current-jobs-reserved: 0$/m.test(await stats()), 20)
  // By the mark of the runs over /proc, not by the worker's word.
  expect(findRuns(home.results)).toEqual([])

  const ends = new Map<string, number>()
  let kills = 0
  for (const uuid of uuids) {
    const status = home.status(uuid)!
    if (status.state === 'failed') expect(status.reason, uuid).toMatch(/exit|died|ended|grew|input is bad/)
    else expect(home.result(uuid), uuid).toMatchObject({ uuid, timestamp: expect.any(String) })
    expect(status.attempts.length).toBeGreaterThan(0)
    for (const { kill, outcome } of status.attempts) {
      ends.set(outcome, (ends.get(outcome) ?? 0) + 1)
      if (kill === undefined) continue
      kills++
      expect(kill.survivors, uuid).toEqual([])
    }
  }
  const complete = uuids.filter((uuid) => home.status(uuid)?.state === 'complete').length
  expect(await stats()).toMatch(new RegExp(`^current-jobs-buried: ${JOBS - complete}$`, 'm'))
  expect(await stats()).toMatch(/^current-jobs-ready: 0$/m)
  // The seeds are random, but 200 throws of 22 faces meet these.
  expect([...ends.keys()]).toEqual(
    expect.arrayContaining(['success', 'failed', 'timed_out', 'output_exceeded', 'signalled', 'rejected']),
  )
  expect(kills).toBeGreaterThan(50)
  expect(worker.child.exitCode).toBeNull()
  expect(worker.said.stderr).toBe('')
  expect(await worker.stop()).toBe(0)
}, 280_000)
