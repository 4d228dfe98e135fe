import { describe, expect, it } from 'vitest'
import { runAlgorithm } from './child.ts'

describe('pi', () => {
  it('estimates pi within four standard errors, and the same for the same seed', async () => {
    const [one, two, other] = await Promise.all([7, 7, 8].map((seed) => runAlgorithm('pi', { samples: 200_000, seed })))
    const result = JSON.parse(one?.stdout ?? '')
    expect(result).toMatchObject({ samples: 200_000, seed: 7 })
    expect(result.standard_error).toBeCloseTo(4 * Math.sqrt(((result.pi / 4) * (1 - result.pi / 4)) / 200_000), 8)
    expect(Math.abs(result.pi - Math.PI)).toBeLessThan(4 * result.standard_error)
    expect(two?.stdout).toBe(one?.stdout)
    expect(JSON.parse(other?.stdout ?? '').pi).not.toBe(result.pi)
  })

  it('runs without any key, and with the fewest samples', async () => {
    const [one, all] = await Promise.all([runAlgorithm('pi', { samples: 1 }), runAlgorithm('pi', {})])
    expect(JSON.parse(one.stdout)).toMatchObject({ samples: 1, standard_error: 0 })
    expect(JSON.parse(all.stdout)).toMatchObject({ samples: 1_000_000, seed: 0 })
  })

  it.each([
    ['no samples', { samples: 0 }],
    ['a fraction', { samples: 1.5 }],
    ['text', { seed: 'a' }],
    ['too large a seed', { seed: 2_147_483_646 }],
    ['an unknown key', { sample: 5 }],
    ['something nested', { samples: [1, { a: 2 }] }],
    ['a list', [1]],
    ['nothing', ''],
  ])('refuses %s with 65', async (_, payload) => {
    const ended = await runAlgorithm('pi', payload)
    expect(ended).toMatchObject({ code: 65, stdout: '' })
    expect(ended.stderr).toMatch(/^pi: .*; give \{"samples": N, "seed": S\}.*\n$/)
  })
})
