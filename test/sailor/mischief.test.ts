import { lstatSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { getMischief, listMischiefs, type MischiefName } from '../../src/sailor/mischief.ts'
import { findMarked, finish, hasOpen, killMarked, launch, openHarbour, readProc, readStatus, until } from './launch.ts'

const MEBIBYTE = 1024 * 1024

/** Returns when the describing line was read. */
async function meet(name: MischiefName, ...more: string[]) {
  const harbour = openHarbour()
  const run = launch(['-v', '-s', '0.05', '--outcome', name, ...more], harbour)
  await until(`the line of ${name}`, () => run.said.stdout.includes(getMischief(name).line))
  const findHelpers = () => findMarked(harbour.mark).filter((pid) => pid !== run.pid)
  return { ...run, harbour, findHelpers }
}

async function stop({ child, exited, harbour }: Awaited<ReturnType<typeof meet>>) {
  child.kill('SIGKILL')
  await exited
  await killMarked(harbour.mark)
}

const catches = (pid: number, signal: keyof typeof constants.signals) =>
  ((BigInt(`0x${readStatus(pid, 'SigCgt')}`) >> BigInt(constants.signals[signal] - 1)) & 1n) === 1n

test.each(listMischiefs(true))('%s ends as its table says', async (name) => {
  const { end, leavesProcess } = getMischief(name)
  const run = await meet(name, '--megabytes', '4')
  if (end.kind === 'killed') {
    if (leavesProcess) await until('helpers', () => run.findHelpers().length > 0)
    if (name === 'stops-itself') await until('a stopped process', () => readStatus(run.pid, 'State').startsWith('T'))
    if (end.by === 'SIGKILL') run.child.kill('SIGTERM')
    run.child.kill(end.by)
  }
  const [code, signal] = await run.exited
  if (end.kind === 'exits') expect([code, signal]).toEqual([end.code, null])
  else expect([code, signal]).toEqual([null, end.kind === 'dies' ? end.signal : end.by])
  if (leavesProcess) {
    expect(run.findHelpers().length).toBeGreaterThan(0)
    await killMarked(run.harbour.mark)
  }
  await run.closed
})

test.each(['ignores-sigterm', 'forks-often'] as const)('%s traps its signals before it says so', async (name) => {
  const run = await meet(name)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) expect(catches(run.pid, signal)).toBe(true)
  await stop(run)
})

test('grandchild has a child with a child in its own process group', async () => {
  const run = await meet('grandchild')
  await until('child and grandchild', () => run.findHelpers().length === 2)
  const [group, ...others] = [run.pid, ...run.findHelpers()].map((pid) => readProc(pid, 'stat').split(' ')[4])
  for (const other of others) expect(other).toBe(group)
  const parents = run.findHelpers().map((pid) => Number(readStatus(pid, 'PPid')))
  expect(parents.filter((pid) => pid === run.pid)).toHaveLength(1)
  await stop(run)
})

test('setsid-child has a child in another session', async () => {
  const run = await meet('setsid-child')
  const leadsSession = (pid: number) => readProc(pid, 'stat').split(' ')[5] === String(pid)
  await until('the leader of a session', () => run.findHelpers().some(leadsSession))
  const [helper] = run.findHelpers()
  expect(readStatus(helper!, 'PPid')).toBe(String(run.pid))
  await stop(run)
})

test('daemon leaves one process that is nobody’s child, in another session and not its leader', async () => {
  const run = await meet('daemon')
  expect(await run.exited).toEqual([0, null])
  await run.closed
  const [daemon, ...more] = run.findHelpers()
  expect(more).toEqual([])
  const [, , , , , session] = readProc(daemon!, 'stat').split(' ')
  expect([String(daemon), readProc(process.pid, 'stat').split(' ')[5]]).not.toContain(session)
  await killMarked(run.harbour.mark)
})

test('holds-stdout keeps stdout open after exit 0 until its child is gone', async () => {
  const run = await meet('holds-stdout')
  let closed = false
  run.child.stdout!.once('close', () => {
    closed = true
  })
  expect(await run.exited).toEqual([0, null])
  expect(run.findHelpers().map((pid) => hasOpen(pid, 1))).toEqual([true])
  expect(closed).toBe(false)
  await killMarked(run.harbour.mark)
  await run.closed
})

test.each(['stdout', 'stderr'] as const)('floods-%s waits for a slow reader and takes no memory', async (stream) => {
  const run = await meet(`floods-${stream}`)
  await until('the flood', () => run.said[stream].length > 16 * MEBIBYTE)
  run.child[stream]!.pause()
  const readTicks = () => readProc(run.pid, 'stat').split(' ').slice(13, 15).join()
  let ticks = ''
  await until(
    'a blocked writer',
    () => {
      const before = ticks
      ticks = readTicks()
      return before === ticks
    },
    100,
  )
  expect(Number.parseInt(readStatus(run.pid, 'VmRSS'), 10) / 1024).toBeLessThan(200)
  await stop(run)
})

test('half-json prints what no parser takes', async () => {
  const { stdout, code } = await finish(['-s', '0', '--outcome', 'half-json'])
  const text = stdout.split('\n').slice(1).join('\n')
  expect(code).toBe(0)
  expect(text).toMatch(/^\{/)
  expect(() => JSON.parse(text)).toThrow()
})

test('closes-stdin closes it while it goes on', async () => {
  const harbour = openHarbour()
  const run = launch(['-v', '-s', '60', '--outcome', 'closes-stdin'], harbour)
  await until('stdin closed', () => run.said.stdout.includes('Closes stdin') && !hasOpen(run.pid, 0))
  run.child.kill('SIGKILL')
  await run.closed
})

test('eats-memory holds as many megabytes as it was told', async () => {
  const run = await meet('eats-memory', '--megabytes', '150')
  await until('150 MiB', () => Number.parseInt(readStatus(run.pid, 'VmRSS'), 10) >= 150 * 1024)
  await stop(run)
})

test('dies-by-signal leaves no core file', async () => {
  const harbour = openHarbour()
  const { signal } = await finish(['-s', '0', '--outcome', 'dies-by-signal'], harbour)
  expect(signal).toBe('SIGSEGV')
  expect(readdirSync(harbour.dir)).toEqual([])
})

test('stops-itself stands still for SIGTERM', async () => {
  const run = await meet('stops-itself')
  await until('a stopped process', () => readStatus(run.pid, 'State').startsWith('T'))
  run.child.kill('SIGTERM')
  const isPending = () => BigInt(`0x${readStatus(run.pid, 'ShdPnd')}`) !== 0n
  await until('a SIGTERM that waits', isPending)
  expect(readStatus(run.pid, 'State')).toMatch(/^T/)
  await stop(run)
})

test('huge-file writes as many megabytes as it was told, with real blocks', async () => {
  const harbour = openHarbour()
  expect((await finish(['-s', '0', '--outcome', 'huge-file', '--megabytes', '6'], harbour)).code).toBe(0)
  const { size, blocks } = statSync(join(harbour.dir, 'huge-file.bin'))
  expect(size).toBe(6 * MEBIBYTE)
  expect(blocks).toBeGreaterThan(0)
})

test('huge-file says why it could not write, and does not overwrite', async () => {
  const harbour = openHarbour()
  writeFileSync(join(harbour.dir, 'huge-file.bin'), 'mine')
  const { code, stderr } = await finish(['-s', '0', '--outcome', 'huge-file', '--megabytes', '1'], harbour)
  expect(code).toBe(74)
  expect(stderr).toMatch(/^drunken-sailor: EEXIST.*huge-file\.bin/)
  expect(statSync(join(harbour.dir, 'huge-file.bin')).size).toBe(4)
})

test('forks-often never has more than its bound of children, and they are ever new', async () => {
  const run = await meet('forks-often')
  const seen = new Set<number>()
  let most = 0
  await until('100 different children', () => {
    const helpers = run.findHelpers()
    most = Math.max(most, helpers.length)
    for (const pid of helpers) seen.add(pid)
    return seen.size >= 100
  })
  expect(most).toBeLessThanOrEqual(20)
  await stop(run)
})

test('leaves-files leaves every kind of trap for a publisher', async () => {
  const harbour = openHarbour()
  expect((await finish(['-s', '0', '--outcome', 'leaves-files'], harbour)).code).toBe(0)
  const kinds = readdirSync(harbour.dir).map((name) => {
    const stat = lstatSync(join(harbour.dir, name))
    return `${name}: ${stat.isSymbolicLink() ? 'link' : stat.isFIFO() ? 'fifo' : stat.isFile() ? 'file' : 'other'}`
  })
  expect(kinds.sort()).toEqual([
    '.hidden: file',
    'data.csv: file',
    'fifo: fifo',
    'passwd: link',
    'report.txt: file',
    'result.json: file',
    'two\nlines.txt: file',
  ])
})
