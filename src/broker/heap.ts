/** A binary heap that knows where each of its items is: removal from the middle takes O(log n). */

/** Kept up to date by the one heap that the item is in; -1 while it is in none. */
export interface Placed {
  position: number
}

export class Heap<T extends Placed> {
  readonly #items: T[] = []
  readonly #isBefore: (a: T, b: T) => boolean

  constructor(isBefore: (a: T, b: T) => boolean) {
    this.#isBefore = isBefore
  }

  get size(): number {
    return this.#items.length
  }

  peek(): T | undefined {
    return this.#items[0]
  }

  push(item: T): void {
    this.#items.push(item)
    this.#rise(item, this.#items.length - 1)
  }

  /** The item must be in this heap. */
  remove(item: T): void {
    const { position } = item
    const last = this.#items.pop() as T
    item.position = -1
    if (last === item) return
    this.#rise(last, position)
    this.#sink(last, last.position)
  }

  /** For an item whose order has changed. */
  move(item: T): void {
    this.#rise(item, item.position)
    this.#sink(item, item.position)
  }

  #rise(item: T, from: number): void {
    const items = this.#items
    let position = from
    while (position > 0) {
      const above = (position - 1) >> 1
      const parent = items[above] as T
      if (!this.#isBefore(item, parent)) break
      items[position] = parent
      parent.position = position
      position = above
    }
    items[position] = item
    item.position = position
  }

  #sink(item: T, from: number): void {
    const items = this.#items
    const end = items.length
    let position = from
    for (;;) {
      let below = 2 * position + 1
      if (below >= end) break
      let child = items[below] as T
      const right = items[below + 1]
      if (right !== undefined && below + 1 < end && this.#isBefore(right, child)) {
        child = right
        below++
      }
      if (!this.#isBefore(child, item)) break
      items[position] = child
      child.position = position
      position = below
    }
    items[position] = item
    item.position = position
  }
}
