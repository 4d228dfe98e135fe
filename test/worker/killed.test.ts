import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findRuns, install, until } from '../support/installation.ts'

test('a worker killed with -9 leaves no run; its job runs again, and the next start removes its folder', async () => {
  const home = await install({ CONCURRENCY: '2', GRACE_TIME: '600' })
  home.addAlgorithm(
    'once',
    'test -e "$(dirname "$0")/second" && { echo 2; exit; }; trap "" TERM; setsid sh -c "sleep 300 &"; : > "$(dirname "$0")/second"; while :; do sleep 300; done',
  )
  const worker = await home.startWorker()
  const uuid = await home.putJob('once')
  await until('three processes', () => findRuns(home.results).length === 3)
  worker.child.kill('SIGKILL')
  await worker.exited
  const died = performance.now()
  await until('the end of the run', () => findRuns(home.results).length === 0)
  console.log(`the run ended ${Math.round(performance.now() - died)} ms after its worker`)
  const next = await home.startWorker()
  const cleared = next.events.find(({ event }) => event === 'worker_recovered')
  expect(cleared).toMatchObject({ attempts: 1, survivors: [] })
  await until('its completion', () => home.result(uuid) !== undefined)
  expect(home.result(uuid)?.result).toBe(2)
  expect(await next.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test('what a run wrote into its worker’s folder does not keep the next worker from its start', async () => {
  const home = await install({ GRACE_TIME: '600' })
  home.addAlgorithm('waits', 'test "$QWORKER_ATTEMPT" = 1 || { echo 2; exit; }; exec sleep 300')
  const worker = await home.startWorker()
  const uuid = await home.putJob('waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  const [folder = ''] = readdirSync(join(home.results, '.work')).map((name) => join(home.results, '.work', name))
  worker.child.kill('SIGKILL')
  await worker.exited
  await until('the word of its guard', () => existsSync(join(folder, 'ended.json')))
  writeFileSync(join(folder, 'ended.json'), '{"ended":"x","receipt":{"survivors":[]}}')
  const next = await home.startWorker()
  await until('its completion', () => home.result(uuid) !== undefined)
  expect(home.result(uuid)?.result).toBe(2)
  expect(await next.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})
