/** Brings the faults of the plan over the deployment, each at its time. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Broker } from './broker.ts'
import type { Bucket } from './bucket.ts'
import type { Crew } from './crew.ts'
import type { SmallDisk } from './disk.ts'
import type { FaultKind, PlannedFault } from './plan.ts'
import type { TcpProxy } from './proxy.ts'

export interface Victims {
  readonly crew: Crew
  /** of the workers, by seat */
  readonly proxies: readonly TcpProxy[]
  readonly producerProxy: TcpProxy
  /** undefined: not ours to disturb */
  readonly broker: Broker | undefined
  readonly bucket: Bucket | undefined
  readonly disk: SmallDisk | undefined
  /** called when a run may have lost its worker, or a job may come to a second one */
  readonly onOrphans: () => void
}

const ORPHANING: readonly FaultKind[] = ['worker-kill', 'crew-kill', 'broker-kill', 'net-cut', 'net-half-open']

export interface FaultRecord {
  /** how often each kind was done */
  readonly done: Map<FaultKind, number>
  /** faults that could not be brought about */
  readonly failures: string[]
}

/** Resolves when the last one is over; never rejects. */
export async function bringFaults(
  plan: readonly PlannedFault[],
  victims: Victims,
  record: FaultRecord,
  signal: AbortSignal,
): Promise<void> {
  const began = performance.now()
  const going: Promise<void>[] = []
  for (const fault of plan) {
    await sleep(Math.max(0, fault.atMs - (performance.now() - began)), undefined, { signal }).catch(() => undefined)
    if (signal.aborted) break
    record.done.set(fault.kind, (record.done.get(fault.kind) ?? 0) + 1)
    if (ORPHANING.includes(fault.kind)) victims.onOrphans()
    going.push(
      bring(fault, victims).catch((error: Error) => {
        record.failures.push(`${fault.kind}: ${error.message}`)
      }),
    )
  }
  const over = Promise.all(going)
  const aborted = new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
  await Promise.race([over, ...(signal.aborted ? [undefined] : [aborted])])
}

async function bring(fault: PlannedFault, victims: Victims): Promise<void> {
  const { kind, durationMs, choice } = fault
  const { crew, broker, bucket, disk } = victims
  const seat = choice % victims.proxies.length
  const bit = (n: number) => (choice >> (n + 8)) & 1
  switch (kind) {
    case 'worker-kill':
      return crew.kill(seat)
    case 'crew-kill':
      for (const i of victims.proxies.keys()) crew.kill(i)
      return
    case 'worker-term':
      return crew.term(seat, bit(0) === 1)
    case 'worker-stop':
      return crew.stop(seat, durationMs)
    case 'broker-kill':
      return broker?.bounce(durationMs)
    case 'broker-stop':
      return broker?.freeze(durationMs)
    case 'net-cut':
    case 'net-delay':
    case 'net-freeze':
    case 'net-half-open':
      for (const proxy of chooseProxies(fault, victims)) disturb(proxy, kind, fault, bit(1) === 1 ? 'client' : 'broker')
      return
    case 'disk-full':
      return disk?.fill(durationMs)
    default:
      return bucket?.disturb(kind, durationMs)
  }
}

type NetFaultKind = Extract<FaultKind, `net-${string}`>

function disturb(proxy: TcpProxy, kind: NetFaultKind, fault: PlannedFault, gone: 'client' | 'broker'): void {
  const { durationMs, choice } = fault
  if (kind === 'net-cut') proxy.cut()
  else if (kind === 'net-delay') proxy.delay(50 + (choice % 900), durationMs)
  else if (kind === 'net-freeze') proxy.freeze(durationMs)
  else proxy.halfOpen(gone, durationMs)
}

/** All roads, that of one worker, or that of the producers. */
function chooseProxies({ choice }: PlannedFault, { proxies, producerProxy }: Victims): readonly TcpProxy[] {
  switch ((choice >> 10) % 5) {
    case 0:
      return [...proxies, producerProxy]
    case 1:
      return [producerProxy]
    default:
      return [proxies[choice % proxies.length] as TcpProxy]
  }
}

/** All is as it should be again. */
export function calmAll({ crew, proxies, producerProxy, broker, bucket, disk }: Victims): void {
  crew.calm()
  for (const proxy of [...proxies, producerProxy]) proxy.calm()
  broker?.calm()
  bucket?.calm()
  disk?.calm()
}
