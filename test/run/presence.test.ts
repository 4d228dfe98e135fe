import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { hostname } from 'node:os'
import { expect, test } from 'vitest'
import { startTicksOf } from '../../src/run/look.ts'
import { asLocal, isPresent, makeBrief, ownPresence } from '../../src/run/presence.ts'
import { openGround, readProc, startRun, until } from './ground.ts'

/** What another process of this machine would say of itself. */
function presenceOf(pid: number): string {
  const words = ownPresence().split(' ')
  return [...words.slice(0, 4), pid, startTicksOf(pid)].join(' ')
}

function withWord(index: number, word: string): string {
  return ownPresence().split(' ').with(index, word).join(' ')
}

test('this process is there; its number with another start was another process', () => {
  expect(ownPresence()).toBe(presenceOf(process.pid))
  expect(isPresent(ownPresence())).toBe('alive')
  expect(isPresent(withWord(5, '1'))).toBe('dead')
})

test('a process is there while it is stopped, and gone when it is a zombie or its end was heard', async () => {
  const ground = openGround()
  const { run, child, exited } = await startRun(ground, 'sh -c "kill -STOP \\$\\$" & echo $!; exec sleep $NAP', 1)
  const presence = presenceOf(run.pid)
  child.kill('SIGSTOP')
  await until('a stopped process', () => /^State:\tT/m.test(readProc(run.pid, 'status')))
  expect(isPresent(presence)).toBe('alive')
  const stopped = Number(readProc(run.pid, `task/${run.pid}/children`).trim())
  const inner = presenceOf(stopped)
  expect(isPresent(inner)).toBe('alive')
  process.kill(stopped, 'SIGKILL')
  await until('a zombie', () => /^State:\tZ/m.test(readProc(stopped, 'status')))
  expect(isPresent(inner)).toBe('dead')
  child.kill('SIGKILL')
  await exited
  expect(isPresent(presence)).toBe('dead')
})

test('of other machines, boots and containers only an earlier boot of this machine is known', () => {
  const boot = '11111111-2222-3333-4444-555555555555'
  const [, machine = ''] = ownPresence().split(' ')
  expect(isPresent(withWord(2, boot))).toBe(machine.startsWith('-/') ? 'unknown' : 'dead')
  expect(isPresent(withWord(2, boot).replace(machine, `${'1'.repeat(32)}/elsewhere`))).toBe('unknown')
  expect(isPresent(withWord(2, boot).replace(machine, `-/${hostname()}`))).toBe('unknown')
  expect(isPresent(withWord(3, 'pid:[1]'))).toBe('unknown')
})

test('without /proc a process is gone when its number is free on this host, and else unknown', async () => {
  const child = spawn('true')
  await once(child, 'exit')
  expect(isPresent(`host ${hostname()} ${child.pid}`)).toBe('dead')
  expect(isPresent(`host ${hostname()} ${process.pid}`)).toBe('unknown')
  expect(isPresent(`host not-${hostname()} ${child.pid}`)).toBe('unknown')
})

test.each(['', 'linux', 'host', `host ${hostname()} 0`, `host ${hostname()} -1`, 'linux a b c d e', 'x'])(
  'of text that is no presence (%j) nothing is known',
  (text) => {
    expect(isPresent(text)).toBe('unknown')
  },
)

test.each(['0', '-1', '1.5', 'x'])('a presence of this boot with the number %s is none', (number) => {
  expect(isPresent(withWord(4, number))).toBe('unknown')
})

test('the brief form fits into a file name and says the same of here, other boots and other places', () => {
  const brief = (presence: string) => makeBrief(presence) as string
  const boot = '11111111-2222-3333-4444-555555555555'
  const [, machine = ''] = ownPresence().split(' ')
  expect(brief(ownPresence())).toMatch(/^[0-9a-z-]{1,40}$/)
  expect(asLocal(brief(ownPresence()))).toEqual(asLocal(ownPresence()))
  for (const presence of [
    ownPresence(),
    withWord(5, '1'),
    withWord(2, boot),
    withWord(2, boot).replace(machine, `${'1'.repeat(32)}/elsewhere`),
    withWord(3, 'pid:[1]'),
  ]) {
    expect(isPresent(brief(presence)), presence).toBe(isPresent(presence))
  }
  expect(makeBrief(`host ${hostname()} 7`)).toBeUndefined()
})
