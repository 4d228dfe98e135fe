import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type Installation, install, type LogLine, leaveOut, newUuid, PROJECT, until } from '../support/installation.ts'

/** A worker whose stdout is a file. */
function startOnFile(home: Installation, file: string) {
  const stdout = openSync(file, 'a')
  const env = {
    PATH: process.env.PATH,
    BEANSTALK_SERVER: '127.0.0.1',
    BEANSTALK_PORT: String(home.broker.port),
    RESULT_BASEDIR: home.results,
    ALGORITHM_DIRS: home.algorithms,
    HTTP_PORT: '0',
    LOG_LEVEL: 'debug',
  }
  const child = spawn(join(PROJECT, 'bin', 'qworker'), { env, stdio: ['ignore', stdout, 'inherit'] })
  closeSync(stdout)
  const exited = once(child, 'exit')
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return { child, exited }
}

const linesOf = (file: string): LogLine[] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line.endsWith('}') && line.startsWith('{'))
    .map((line) => JSON.parse(line) as LogLine)

test('a log that is a file has all lines in their order, up to the last', async () => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  const file = join(home.base, 'log')
  const { child, exited } = startOnFile(home, file)
  const uuids = await Promise.all(Array.from({ length: 20 }, () => home.putJob('ok')))
  await until('all are complete', () => uuids.every((uuid) => home.status(uuid)?.state === 'complete'))
  await until('all are told', () => linesOf(file).filter(({ event }) => event === 'job_settled').length === 20)
  child.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
  const lines = linesOf(file)
  expect(readFileSync(file, 'utf8').trimEnd().split('\n')).toHaveLength(lines.length)
  expect(lines.at(-1)).toMatchObject({ event: 'worker_stopped', settled: 20 })
  for (const uuid of uuids) {
    const told = lines.filter((line) => line.uuid === uuid).map(({ event }) => event)
    expect(told).toEqual(['job_dequeued', 'run_started', 'run_ended', 'job_published', 'job_settled'])
  }
})

test('a log on a disk that was full goes on when there is room', async (context) => {
  const home = await install()
  home.addAlgorithm('ok', 'echo 1')
  const disk = join(home.base, 'disk')
  mkdirSync(disk)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk], { stdio: 'pipe' })
  } catch {
    leaveOut(context, 'nothing can be mounted here, root with CAP_SYS_ADMIN is needed')
  }
  onTestFinished(() => void execFileSync('umount', ['-l', disk]))
  const file = join(disk, 'log')
  const { child, exited } = startOnFile(home, file)
  await until('it is ready', () => linesOf(file).some(({ event }) => event === 'worker_ready'))
  const filler = join(disk, 'filler')
  expect(() => writeFileSync(filler, Buffer.alloc(2 ** 20))).toThrow(/ENOSPC/)
  const unseen = await Promise.all(Array.from({ length: 30 }, () => home.putJob('ok')))
  await until('all are complete', () => unseen.every((uuid) => home.status(uuid)?.state === 'complete'))
  const told = linesOf(file)
  expect(told.filter(({ event }) => event === 'job_settled').length).toBeLessThan(30)
  rmSync(filler)
  const seen = await home.putJob('ok')
  await until('it is told', () => linesOf(file).some(({ event, uuid }) => event === 'job_settled' && uuid === seen))
  child.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
})

test('a log on a disk that hangs does not keep a run past its time', async (context) => {
  const home = await install()
  home.addAlgorithm('endless', 'exec sleep 300')
  const disk = join(home.base, 'disk')
  const image = join(home.base, 'image')
  mkdirSync(disk)
  writeFileSync(image, Buffer.alloc(4 * 2 ** 20))
  try {
    execFileSync('mkfs.ext4', ['-q', '-F', image], { stdio: 'pipe' })
    execFileSync('mount', ['-o', 'loop', image, disk], { stdio: 'pipe' })
  } catch {
    leaveOut(context, 'no file can be mounted here as a disk: root with CAP_SYS_ADMIN and loop devices are needed')
  }
  const thaw = () => spawnSync('fsfreeze', ['-u', disk], { stdio: 'ignore' })
  onTestFinished(() => {
    thaw()
    execFileSync('umount', ['-l', disk])
  })
  const file = join(disk, 'log')
  const { child, exited } = startOnFile(home, file)
  await until('it is ready', () => linesOf(file).some(({ event }) => event === 'worker_ready'))
  const uuid = newUuid()
  execFileSync('fsfreeze', ['-f', disk])
  await home.putJob('endless', {}, { uuid, ttr: 1, header: { max_attempts: 1 } })
  await until('the run is ended', () => home.status(uuid)?.state === 'failed')
  expect(home.status(uuid)?.attempts).toMatchObject([{ outcome: 'timed_out' }])
  thaw()
  await until('it is told', () => linesOf(file).some(({ event }) => event === 'job_settled'))
  child.kill('SIGTERM')
  expect(await exited).toEqual([0, null])
})
