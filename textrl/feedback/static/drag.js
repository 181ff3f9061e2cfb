// Dragging with mouse, pen or finger, by pointer events. What it does has key and button equals.

/**
 * Let `handle` be dragged. Elements with class `drop` are targets; the one under the pointer gets the
 * class `over`, and `dropped` is called with it.
 */
export function draggable(handle, dropped) {
  handle.addEventListener("pointerdown", (down) => {
    if (down.button !== 0 || down.target.closest("button")) return;
    let moving = false;
    let target = null;
    const move = (event) => {
      const x = event.clientX - down.clientX;
      const y = event.clientY - down.clientY;
      if (!moving && Math.hypot(x, y) < 6) return;
      if (!moving) {
        moving = true;
        handle.setPointerCapture(down.pointerId);
        handle.classList.add("dragged");
        document.body.classList.add("dragging");
      }
      handle.style.transform = `translate(${x}px, ${y}px)`;
      target?.classList.remove("over");
      target = document.elementFromPoint(event.clientX, event.clientY)?.closest(".drop") ?? null;
      target?.classList.add("over");
      scrollNearEdge(event.clientY);
    };
    const end = (event) => {
      document.removeEventListener("pointermove", move);
      document.removeEventListener("pointerup", end);
      document.removeEventListener("pointercancel", end);
      handle.classList.remove("dragged");
      handle.style.transform = "";
      document.body.classList.remove("dragging");
      target?.classList.remove("over");
      if (moving && target && event.type === "pointerup") dropped(target);
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", end);
    document.addEventListener("pointercancel", end);
  });
}

function scrollNearEdge(y) {
  const margin = 60;
  if (y < margin) window.scrollBy(0, -12);
  else if (y > window.innerHeight - margin) window.scrollBy(0, 12);
}
