import { expect, onTestFinished, test } from 'vitest'
import type { Reservation } from '../../src/queue/queue.ts'
import { startHold } from '../../src/worker/hold.ts'
import { until } from '../support/installation.ts'

test('while a settlement is told nothing is touched: a touch behind it would find no job, and tell of a loss', async () => {
  let touches = 0
  const reservation: Reservation = {
    ticket: '1',
    tube: 'default',
    body: Buffer.from('[]'),
    priority: 0,
    ttrSeconds: 1,
    touch: async () => void touches++,
  } as Partial<Reservation> as Reservation
  const lost: string[] = []
  const hold = startHold({
    reservation,
    reconnect: () => Promise.reject(new Error('is not asked for')),
    onLost: (detail) => void lost.push(detail),
    onBroken: (error) => void lost.push(error),
    onRegained: () => undefined,
    onTouched: () => undefined,
  })
  onTestFinished(() => hold.stop())
  await until('it touches', () => touches >= 2)
  // As long as a broker takes that is busy: several touches were due meanwhile.
  let touchesMeanwhile = 0
  const isTold = await hold.settle(async () => {
    const before = touches
    await new Promise((resolve) => setTimeout(resolve, 700))
    touchesMeanwhile = touches - before
  })
  expect([isTold, touchesMeanwhile, lost]).toEqual([true, 0, []])
})
