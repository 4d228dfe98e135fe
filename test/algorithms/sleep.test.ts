import { readFileSync } from 'node:fs'
import { describe, expect, it, vi } from 'vitest'
import { runAlgorithm } from './child.ts'

describe('sleep', () => {
  it.each([
    ['the TTR for a payload that says nothing', { foo: 'bar', '23': '42', payload: null }, 1],
    ['as long as the payload says', { seconds: 0.2 }, 0.2],
    ['not at all for 0', { seconds: 0 }, 0],
    [
      'as the top level says, whatever is nested or written in texts',
      { a: '"seconds": 9, {', b: { seconds: 9 }, seconds: 0.1, c: [{}] },
      0.1,
    ],
  ])('sleeps %s', async (_, payload, seconds) => {
    const ended = await runAlgorithm('sleep', payload)
    expect(ended).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse(ended.stdout)).toEqual({ slept_seconds: seconds })
    expect(ended.seconds).toBeGreaterThanOrEqual(seconds)
  })

  it.each([
    ['a negative time', { seconds: -1 }],
    ['text', { seconds: '3' }],
    ['a command', { seconds: '1; touch x' }],
    ['more than a day', { seconds: 86_400.5 }],
    ['null', { seconds: null }],
    ['a list', [3]],
    ['nothing', ''],
    ['deep nesting', `{"seconds":0,"a":${'['.repeat(20_000)}${']'.repeat(20_000)}}`],
  ])('refuses %s with 65', async (_, payload) => {
    const ended = await runAlgorithm('sleep', payload)
    expect(ended.code).toBe(65)
    expect(ended.stdout).toBe('')
    expect(ended.stderr).toMatch(/^sleep: .*; give \{"seconds": N\}.*\n$/)
    expect(Object.keys(ended.files)).toEqual(['input.json'])
  })

  it('ends at once on SIGTERM, without a result, and takes its child along', async () => {
    let sleeper = 0
    const ended = await runAlgorithm(
      'sleep',
      { seconds: 60 },
      {
        onStart: async (child) => {
          sleeper = await findSleeper(child.pid ?? 0)
          child.kill('SIGTERM')
        },
      },
    )
    expect(ended).toMatchObject({ code: 143, stdout: '' })
    expect(ended.seconds).toBeLessThan(10)
    // one that ended may stay a zombie until init looks
    await vi.waitFor(() => expect(commandLine(sleeper)).toBe(''))
  })
})

/** Waits until the shell has started its sleep: only then it is asleep, and heeds signals by its trap. */
async function findSleeper(shell: number): Promise<number> {
  return vi.waitFor(
    () => {
      const children = readFileSync(`/proc/${shell}/task/${shell}/children`, 'utf8').trim().split(' ').map(Number)
      const found = children.find((pid) => commandLine(pid).startsWith('sleep\x0060'))
      if (found === undefined) throw new Error('not asleep yet')
      return found
    },
    { timeout: 10_000, interval: 20 },
  )
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return ''
  }
}
