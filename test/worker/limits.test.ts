import { chmodSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { install, leaveOut } from '../support/installation.ts'

test('a limit that the kernel keeps is named in the status document, beside what the attempt used', async () => {
  const home = await install()
  home.addAlgorithm('spin', 'while :; do :; done', 'limits: {cpu_seconds: 1, memory: 64MiB}\nmax_attempts: 1')
  const worker = await home.startWorker()
  const uuid = await home.putJob('spin', {}, { ttr: 60 })
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  const detail = 'it used more than 1 s of processor time (cpu_seconds, SIGXCPU)'
  expect(home.status(uuid)).toMatchObject({
    state: 'failed',
    reason: `${detail} (attempt 1 of 1)`,
    attempts: [{ outcome: 'limit_exceeded', error: detail, signal: 'SIGXCPU', usage: { method: 'sampled' } }],
  })
  const usage = home.status(uuid)?.attempts[0]?.usage
  expect(usage?.cpu_seconds).toBeGreaterThan(0.1)
  expect(usage?.peak_memory_bytes).toBeGreaterThan(100_000)
  expect(await worker.stop()).toBe(0)
})

test('a worker that is root runs an algorithm as nobody, and publishes what it left as files of its own', async (context) => {
  if (process.geteuid?.() !== 0) leaveOut(context, 'needs root')
  const home = await install()
  chmodSync(home.base, 0o755)
  home.addAlgorithm('who', 'id -un; cat "$HOME/input.json" >out.txt', 'user: nobody')
  const worker = await home.startWorker()
  const uuid = await home.putJob('who', { n: 1 })
  await worker.waitFor('settled', ({ event }) => event === 'job_settled')
  expect(home.result(uuid)).toMatchObject({ result: 'nobody\n', files: [{ name: 'out.txt', bytes: 7 }] })
  expect(await (await fetch(`${worker.url}${uuid}/out.txt`)).text()).toBe('{"n":1}')
  for (const name of ['out.txt', 'stdout.log', 'stderr.log', 'result.json'])
    expect(statSync(join(home.results, uuid.slice(0, 2), uuid, name)).uid).toBe(0)
  expect(await worker.stop()).toBe(0)
})
