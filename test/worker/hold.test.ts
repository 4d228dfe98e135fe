import { expect, onTestFinished, test } from 'vitest'
import type { Reservation } from '../../src/queue/queue.ts'
import { startHold, thisMoment } from '../../src/worker/hold.ts'
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
    asked: thisMoment(),
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

test('fresh is a reservation that was asked for a moment ago; of another the broker is asked at once, and by the moment of that question it is fresh', async () => {
  let answer: () => void = () => undefined
  let touches = 0
  const touch = () => {
    touches++
    return new Promise<void>((resolve) => {
      answer = resolve
    })
  }
  const reservation = { ticket: '1', ttrSeconds: 60, touch } as Partial<Reservation> as Reservation
  const start = (agoMs: number) => {
    const { ms, date } = thisMoment()
    const hold = startHold({
      reservation,
      asked: { ms: ms - agoMs, date: date - agoMs },
      reconnect: () => Promise.reject(new Error('is not asked for')),
      onLost: () => undefined,
      onBroken: () => undefined,
      onRegained: () => undefined,
      onTouched: () => undefined,
    })
    onTestFinished(() => hold.stop())
    return hold
  }
  expect([start(0).isFresh, touches]).toEqual([true, 0])
  const waited = start(15_000)
  expect([waited.isFresh, touches]).toEqual([false, 1])
  answer()
  await until('it is fresh', () => waited.isFresh)
  const late = start(15_000)
  await new Promise((resolve) => setTimeout(resolve, 150))
  answer()
  await new Promise((resolve) => setTimeout(resolve, 10))
  expect(late.isFresh).toBe(false)
})
