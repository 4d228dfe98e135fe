import { spawnSync } from 'node:child_process'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { eventsOf, tell } from '../support/gated.ts'
import { findRuns, type Installation, install, PROJECT, type RunningWorker, until } from '../support/installation.ts'

const SERVE = `while read -r line; do
  uuid=\${line#*'"uuid":"'}; uuid=\${uuid%%'"'*}; dir=\${line#*'"workdir":"'}; dir=\${dir%%'"'*}
  case $line in
    *waits*) : >>"$(dirname "$0")/waiting"; while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done;;
    *files*) echo plot >"$dir/plot.svg"; echo "about $uuid" >&2;;
  esac
  printf '{"uuid":"%s","result":{"pid":%s,"version":1}}\\n' "$uuid" $$
done
: >>"$(dirname "$0")/ended"`

const addWarm = (home: Installation) => home.addAlgorithm('warm', SERVE, 'mode: warm\nversion: "1"')
const pidIn = (home: Installation, uuid: string) => (home.result(uuid) as { result: { pid: number } }).result.pid
const settled = (worker: RunningWorker, uuid: string) =>
  worker.waitFor(`the end of ${uuid}`, (line) => line.event === 'job_settled' && line.uuid === uuid)
const notesOf = (home: Installation, name: string) => readdirSync(join(home.algorithms, 'warm')).includes(name)

test('jobs are served by one process, and published with files and log like any other; TERM ends it by the end of its stdin', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addWarm(home)
  const worker = await home.startWorker()
  const uuids = [await home.putJob('warm', 'files'), await home.putJob('warm'), await home.putJob('warm', 'files')]
  for (const uuid of uuids) await settled(worker, uuid)
  expect(new Set(uuids.map((uuid) => pidIn(home, uuid))).size).toBe(1)
  const [uuid = '', plain = ''] = uuids
  expect(home.result(uuid)).toMatchObject({ type: 'warm', exit_code: 0, files: [{ name: 'plot.svg', bytes: 5 }] })
  expect(await (await fetch(`${worker.url}${uuid}/plot.svg`)).text()).toBe('plot\n')
  expect(await (await fetch(`${worker.url}${uuid}/stderr.log`)).text()).toBe(`about ${uuid}\n`)
  expect(home.status(uuid)?.attempts).toMatchObject([
    { outcome: 'success', exit_code: 0, error: null, stderr_tail: `about ${uuid}\n`, usage: { method: 'sampled' } },
  ])
  expect(readdirSync(join(home.results, plain.slice(0, 2), plain)).sort()).toEqual(['result.json', 'status.json'])
  expect(findRuns(home.results)).toEqual([pidIn(home, uuid)])
  expect(eventsOf(worker, 'run_started').map(({ pid }) => pid)).toEqual(uuids.map((each) => pidIn(home, each)))
  expect(await worker.stop()).toBe(0)
  expect(notesOf(home, 'ended')).toBe(true)
  expect(findRuns(home.results)).toEqual([])
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test('HUP: the job in hand is answered by the old process, the next one is served by what was installed meanwhile', async () => {
  const home = await install({ CONCURRENCY: '2' })
  addWarm(home)
  const worker = await home.startWorker()
  const [one, two] = [await home.putJob('warm', 'waits'), await home.putJob('warm', 'waits')]
  await until('both slots are busy', () => eventsOf(worker, 'run_started').length === 2)
  home.addAlgorithm('warm', SERVE.replace('"version":1', '"version":2'), 'mode: warm\nversion: "2"')
  await tell(worker, 'SIGHUP', 'algorithms_read')
  writeFileSync(join(home.algorithms, 'warm', 'go'), '')
  await Promise.all([settled(worker, one), settled(worker, two)])
  await until('the old ones are gone', () => findRuns(home.results).length === 0)
  for (const uuid of [one, two]) expect(home.result(uuid)?.result).toMatchObject({ version: 1 })
  const third = await home.putJob('warm')
  await settled(worker, third)
  expect(home.result(third)).toMatchObject({ version: '2', result: { version: 2 } })
  // One that waits is ended by the reload itself.
  await tell(worker, 'SIGHUP', 'algorithms_read')
  await until('it is gone', () => findRuns(home.results).length === 0)
})

test('a worker killed with -9 takes its warm processes along, busy or not; the job runs again', async () => {
  const home = await install({ CONCURRENCY: '2', GRACE_TIME: '600' })
  addWarm(home)
  const worker = await home.startWorker()
  await settled(worker, await home.putJob('warm'))
  const uuid = await home.putJob('warm', 'waits')
  await until('it is busy', () => notesOf(home, 'waiting'))
  expect(findRuns(home.results).length).toBeGreaterThan(0)
  worker.child.kill('SIGKILL')
  await worker.exited
  const died = performance.now()
  await until('their end', () => findRuns(home.results).length === 0)
  console.log(`warm processes ended ${Math.round(performance.now() - died)} ms after their worker`)
  writeFileSync(join(home.algorithms, 'warm', 'go'), '')
  const next = await home.startWorker()
  await settled(next, uuid)
  expect(home.status(uuid)?.attempts.map(({ outcome }) => outcome)).toEqual(['abandoned', 'success'])
  expect(await next.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test('a second TERM ends a job in hand with its process, and gives it back', async () => {
  const home = await install({ CONCURRENCY: '1' })
  addWarm(home)
  const worker = await home.startWorker()
  const uuid = await home.putJob('warm', 'waits')
  await until('it is busy', () => notesOf(home, 'waiting'))
  worker.child.kill('SIGTERM')
  await worker.waitFor('draining', ({ event }) => event === 'worker_draining')
  expect(await worker.stop()).toBe(0)
  expect(home.status(uuid)).toMatchObject({ state: 'queued', attempts: [] })
  expect(findRuns(home.results)).toEqual([])
})

test('the warm process of a worker that stays stopped is ended by another, which runs the job again', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '0' })
  addWarm(home)
  const first = await home.startWorker()
  const uuid = await home.putJob('warm', 'waits', { ttr: 2 })
  await until('it is busy', () => notesOf(home, 'waiting'))
  first.child.kill('SIGSTOP')
  const [frozen] = findRuns(home.results)
  writeFileSync(join(home.algorithms, 'warm', 'run.sh'), `#!/bin/sh\n${SERVE.replace('*waits*', '*never*')}\n`)
  const second = await home.startWorker()
  await until('the job is done', () => home.result(uuid) !== undefined, 90)
  expect(findRuns(home.results)).not.toContain(frozen)
  expect(home.status(uuid)?.attempts.map(({ outcome }) => outcome)).toEqual(['abandoned', 'success'])
  first.child.kill('SIGCONT')
  await first.waitFor('the loss', ({ event }) => event === 'reservation_lost')
  expect(eventsOf(second, 'job_published')).toHaveLength(1)
}, 150_000)

test('60 warm sailors of all mischiefs: every job ends complete or buried with a reason, and nobody is left', async () => {
  const home = await install({
    CONCURRENCY: '3',
    GRACE_TIME: '0',
    MAX_OUTPUT: '1MiB',
    MAX_ATTEMPTS: '3',
    ALGORITHM_DIRS: `${PROJECT}/algorithms`,
  })
  const worker = await home.startWorker()
  const uuids: string[] = []
  const base = Math.floor(Math.random() * 2 ** 31)
  console.log(`seeds from ${base} on`)
  for (let i = 0; i < 60; i++)
    uuids.push(await home.putJob('drunken_sailor_warm', { seed: base + i, sleep: 0 }, { ttr: 1 }))
  const isFinal = (uuid: string) => ['complete', 'failed'].includes(home.status(uuid)?.state ?? '')
  await until('all jobs are final', () => uuids.every(isFinal), 150)
  for (const uuid of uuids) {
    const status = home.status(uuid)
    if (status?.state === 'failed')
      expect(status.reason, uuid).toMatch(/exit 10|Faulty|input is bad|process wrote|ended after/)
    else expect(home.result(uuid)?.result, uuid).toMatchObject({ attempt: status?.attempts.at(-1)?.attempt })
    for (const { kill } of status?.attempts ?? []) expect(kill?.survivors ?? [], uuid).toEqual([])
  }
  expect(worker.said.stderr).toBe('')
  expect(await worker.stop()).toBe(0)
  expect(findRuns(home.results)).toEqual([])
}, 200_000)

test('check tells of a warm manifest what is wrong with it, and starts nothing', async () => {
  const home = await install()
  home.addAlgorithm('good', ': >"$(dirname "$0")/started"', 'mode: warm')
  home.addAlgorithm('bad', 'exit 0', 'mode: warm\noutput: text')
  const env = {
    ...{ PATH: process.env.PATH, BEANSTALK_SERVER: '127.0.0.1', BEANSTALK_PORT: String(home.broker.port) },
    ...{ HTTP_PORT: '0', RESULT_BASEDIR: home.results, ALGORITHM_DIRS: home.algorithms },
  }
  const { stdout } = spawnSync(join(PROJECT, 'bin/qworker'), ['check'], { env, encoding: 'utf8' })
  expect(stdout).toMatch(/bad.*output must not be text with mode: warm/)
  expect(readdirSync(join(home.algorithms, 'good'))).not.toContain('started')
})
